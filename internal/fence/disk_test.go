package fence

import "testing"

// TestCompleted: of the kernel's statistics of disks only those count that stand still with the disk.
func TestCompleted(t *testing.T) {
	const one = "10 1 20 2 30 3 40 4 9 999 999 50 5 60 6 70 7\n"
	for name, tc := range map[string]struct {
		stats string
		want  uint64
	}{
		"a disk":    {one, 280},
		"old":       {"10 1 20 2 30 3 40 4 9 999 999\n", 100},
		"all disks": {"   8       0 sda " + one + "   7       1 loop1 " + one, 560},
		"nothing":   {"", 0},
		"nonsense":  {"a b c d e\nx\n", 0},
	} {
		if got := completed([]byte(tc.stats)); got != tc.want {
			t.Errorf("%s: %d instead of %d", name, got, tc.want)
		}
	}
}

// TestDisks: the number never shrinks, also for a path without a disk of its own, and one that is missing.
func TestDisks(t *testing.T) {
	disks := Disks("/proc", t.TempDir(), "/missing")
	if first := disks(); disks() < first {
		t.Errorf("less than %d", first)
	}
}
