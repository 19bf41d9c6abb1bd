package resident

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// locked returns how many bytes this process has locked in memory.
func locked(t *testing.T) (bytes int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmLck:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmLck")
	return 0
}

// TestProgram: the code of this program stays in memory, or the kernel says why not.
func TestProgram(t *testing.T) {
	before := locked(t)
	n, err := Program()
	if err != nil {
		t.Logf("only %d bytes: %v", n, err)
	}
	if err == nil && n < 1<<20 {
		t.Errorf("%d bytes are not the whole program", n)
	}
	if now := locked(t); now-before != int(n) {
		t.Errorf("%d bytes are locked instead of %d", now-before, n)
	}
}

// TestMappings: of a program only what is never written to is locked.
func TestMappings(t *testing.T) {
	const text = `00400000-00e00000 r-xp 00000000 08:01 1 /usr/bin/tank snapshotter
00e00000-01f00000 r--p 00a00000 08:01 1 /usr/bin/tank snapshotter
01f00000-01f90000 rw-p 01b00000 08:01 1 /usr/bin/tank snapshotter
01f90000-02000000 rw-p 00000000 00:00 0
7f0000000000-7f0000010000 r--s 00000000 08:01 2 /var/lib/tank/metadata.db
`
	got, err := mappings(strings.NewReader(text), "/usr/bin/tank snapshotter")
	if want := []mapping{{0x400000, 0xe00000}, {0xe00000, 0x1f00000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}
}
