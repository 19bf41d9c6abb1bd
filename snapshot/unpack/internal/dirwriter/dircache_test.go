package dirwriter

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// chainWriter records the directories that it makes.
type chainWriter struct {
	*Writer
	chain []*tarlayer.Node
}

func (w *chainWriter) Mkdir(n *tarlayer.Node) error {
	w.chain = append(w.chain, n)
	return w.Writer.Mkdir(n)
}

// TestDeepDirectories opens the directories of a deep chain from the lowest to the highest, as the end of an extraction
// does. Each directory is opened from at most stride levels above it. Otherwise the total time would grow with the
// square of the depth.
func TestDeepDirectories(t *testing.T) {
	t.Parallel()
	const depth = 1500
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	made, err := New(int(dir.Fd()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	w := &chainWriter{Writer: made}
	layer := unpacktest.Tar(t, unpacktest.D(strings.Repeat("d/", depth)))
	if _, err := tarlayer.Read(context.Background(), strings.NewReader(string(layer)), w, nil); err != nil {
		t.Fatal(err)
	}
	if len(w.chain) != depth {
		t.Fatalf("%d directories, want %d", len(w.chain), depth)
	}
	inodes := inodesOf(t, int(dir.Fd()), depth)
	for _, walk := range []bool{false, true} {
		open, err := beneath.NewOpener(int(dir.Fd()), walk)
		if err != nil {
			t.Fatal(err)
		}
		c := dirCache{open: open}
		defer c.purge()
		for i := depth - 1; i >= 0; i-- {
			n := w.chain[i]
			if fd, err := c.fd(n); err != nil {
				t.Fatal(err)
			} else if got := inodeOf(t, fd); got != inodes[i] {
				t.Fatalf("level %d: inode %d, want %d", i, got, inodes[i])
			}
			if _, rel, err := c.steps.near(open, n); err != nil || strings.Count(rel, "/") >= stride {
				t.Fatalf("level %d: opened by a path of %d levels, %v", i, strings.Count(rel, "/")+1, err)
			}
		}
		if c.steps.tick > 6*depth {
			t.Errorf("%d steps for %d directories", c.steps.tick, depth)
		}
	}
}

// inodesOf returns the inode numbers of the chain of directories named "d" below top, the highest first.
func inodesOf(t *testing.T, top, depth int) []uint64 {
	t.Helper()
	var inodes []uint64
	for fd := top; len(inodes) < depth; {
		next, err := unix.Openat(fd, "d", beneath.DirFlags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if fd != top {
			unix.Close(fd)
		}
		fd, inodes = next, append(inodes, inodeOf(t, next))
		if len(inodes) == depth {
			unix.Close(fd)
		}
	}
	return inodes
}

func inodeOf(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
