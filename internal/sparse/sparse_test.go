package sparse_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/sparse"
)

// withoutExtents is a file system that reports data as a hole until it is on the disk.
func withoutExtents(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("CI") != "true" {
		t.Skip("needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext3", "-q", "-F", image}, {"mount", "-t", "ext4", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFiles copies and hashes files whose data is not yet on the disk.
func TestFiles(t *testing.T) {
	x := bytes.Repeat([]byte("x"), 100_000)
	rows := []struct {
		name   string
		size   int64
		pieces []int64 // where there are 100,000 bytes of data
		most   int64   // what a copy takes of the disk; 0: all of it
	}{
		{"empty", 0, nil, 0},
		{"dense", 300_000, []int64{0, 100_000, 200_000}, 0},
		{"begins with a hole", 300_000, []int64{200_000}, 150_000},
		{"holes between", 8 << 20, []int64{4096, 1 << 20, 3<<20 + 5, 8<<20 - 100_000}, 1 << 20},
		{"nothing but a hole", 40 << 20, nil, 1 << 20},
		{"large, begins with a hole", 64 << 20, []int64{32<<20 + 1}, 1 << 20},
		{"large, ends with a hole", 64 << 20, []int64{0, 20 << 20}, 1 << 20},
	}
	dirs := map[string]string{"temporary": t.TempDir(), "without extents": withoutExtents(t)}
	for fs, dir := range dirs {
		for i, row := range rows {
			t.Run(fs+"/"+row.name, func(t *testing.T) {
				from, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d", i)))
				must(t, err)
				defer from.Close()
				want := make([]byte, row.size)
				for _, at := range row.pieces {
					_, err := from.WriteAt(x, at)
					must(t, err)
					copy(want[at:], x)
				}
				must(t, from.Truncate(row.size))
				sum, err := sparse.Sum128(t.Context(), int(from.Fd()), row.size)
				must(t, err)
				if sum != xxh3.Hash128(want).Bytes() {
					t.Errorf("sum of the source: %x", sum)
				}
				to, err := os.Create(from.Name() + ".copy")
				must(t, err)
				defer to.Close()
				must(t, sparse.Copy(t.Context(), to, from))
				got, err := os.ReadFile(to.Name())
				must(t, err)
				if !bytes.Equal(got, want) {
					t.Error("the copy differs")
				}
				sum, err = sparse.Sum128(t.Context(), int(to.Fd()), row.size)
				if err != nil || sum != xxh3.Hash128(want).Bytes() {
					t.Errorf("sum of the copy: %x, %v", sum, err)
				}
				var st unix.Stat_t
				must(t, unix.Fstat(int(to.Fd()), &st))
				if row.most > 0 && st.Blocks*512 > row.most {
					t.Errorf("the copy takes %d bytes", st.Blocks*512)
				}
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
