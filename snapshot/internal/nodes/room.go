package nodes

import (
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// Bytes that are written are held against the free space, so that a layer, or a copy of one, ends with an error before
// the file system is full to the last byte: the database and everything else on the disk go on.
const (
	// maxReserve is what is left free, and reservePart that part of a small file system.
	maxReserve  = 64 << 20
	reservePart = 64
	// roomStep is how many bytes are written before the free space is looked at again.
	roomStep = 8 << 20
)

// Space compares what is written below a directory with the free space of its file system. Several goroutines may use
// it.
type Space struct {
	Path string

	mu   sync.Mutex // guards left
	left int64      // bytes that may be written before the next look
}

// Take is called before so many bytes are written. It returns errdefs.ErrResourceExhausted when too little would be
// left.
func (r *Space) Take(bytes int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left -= bytes; r.left >= 0 {
		return nil
	}
	free, reserve, err := freeBytes(r.Path)
	if err != nil {
		return err
	}
	if free-reserve < bytes {
		const text = "the disk of %s is too small: %d MiB are free, and %d MiB of them are kept in reserve: %w"
		return cause.Mark(fmt.Errorf(text, r.Path, free>>20, reserve>>20, errdefs.ErrResourceExhausted), cause.DiskFull, "")
	}
	r.left = min(roomStep, (free-reserve-bytes)/4)
	return nil
}

// freeBytes is how much of a file system this process may still write, and how much of it is to be left. A file system
// that does not report its size has enough.
func freeBytes(path string) (free, reserve int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	block := uint64(max(st.Bsize, 1))
	if st.Blocks == 0 || st.Bavail > math.MaxInt64/block || st.Blocks > math.MaxInt64/block {
		return math.MaxInt64, 0, nil
	}
	return int64(st.Bavail * block), min(int64(st.Blocks*block)/reservePart, maxReserve), nil
}
