package unpack

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/beneath"
)

// TestDeepDirectories goes up a chain of directories, as the end of an extraction does. Each of them is opened from at
// most stride levels above it, so that the time for all is not the square of their number.
func TestDeepDirectories(t *testing.T) {
	t.Parallel()
	const depth = 1500
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	inodes, chain := make([]uint64, depth+1), make([]*node, depth+1)
	chain[0] = &node{ino: &inode{}}
	for fd, i := int(dir.Fd()), 1; i <= depth; i++ {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", beneath.DirFlags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if i > 1 {
			unix.Close(fd)
		}
		if i == depth {
			defer unix.Close(next)
		}
		fd, inodes[i], chain[i] = next, inodeOf(t, next), chain[i-1].child("d", &inode{})
	}
	for _, walk := range []bool{false, true} {
		open, err := beneath.NewOpener(int(dir.Fd()), walk)
		if err != nil {
			t.Fatal(err)
		}
		c := dirCache{open: open}
		defer c.purge()
		for i := depth; i > 0; i-- {
			if fd, err := c.fd(chain[i]); err != nil {
				t.Fatal(err)
			} else if got := inodeOf(t, fd); got != inodes[i] {
				t.Fatalf("level %d: inode %d, want %d", i, got, inodes[i])
			}
			if _, rel, err := c.steps.near(open, chain[i]); err != nil || strings.Count(rel, "/") >= stride {
				t.Fatalf("level %d: opened by a path of %d levels, %v", i, strings.Count(rel, "/")+1, err)
			}
		}
		if c.steps.tick > 6*depth {
			t.Errorf("%d steps for %d directories", c.steps.tick, depth)
		}
	}
}

func inodeOf(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
