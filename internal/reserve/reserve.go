// Package reserve keeps a little space on a disk for the commands that free space.
//
// It owns the directory reserve/ of a root: a few files without content, whose blocks are
// allocated. Their inodes count as much as their blocks.
//
// Its invariant: a reserve is made only if the disk has several times its size free, so making one
// never fills a disk. A process that gave a reserve up needs only its size to make it again: at worst
// the disk is then as full as before.
//
// The surprising rule: a missing reserve is never an error. On a file system that cannot allocate
// blocks in advance, and on a disk that was full before there was a reserve, callers get the error
// that they would have got without it.
package reserve

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/outcome"
)

const (
	// files is how many files there are: a socket, an index.json and an oci-layout need one inode
	// each.
	files = 4
	// A file has 1/fileShare of the size of the file system, but at least minFile and at most maxFile
	// bytes. XFS allocates inodes in chunks of 32 kB.
	maxFile, minFile = 1 << 20, 64 << 10
	fileShare        = 256
	// freeFactor is how many times the size of the reserve, in blocks and in inodes, must be free
	// before Keep makes one.
	freeFactor = 4
)

// maxWait is how long Retry and KeepAfter wait for a file system that frees the blocks of a deleted
// file in the background. KeepAfter waits for a quarter of it.
const maxWait = time.Second

// Reserve is the reserve of one root.
type Reserve struct {
	dir string

	mu    sync.Mutex // guards spent; held while the files change
	spent bool       // this process gave the reserve up and has not made it again
}

// New returns the reserve of a root. It does not look at the disk.
func New(root string) *Reserve { return &Reserve{dir: filepath.Join(root, "reserve")} }

func (r *Reserve) file(i int) string { return filepath.Join(r.dir, fmt.Sprint(i)) }

// Keep makes the reserve if it is missing and the disk has space for it. It reports whether there is
// a reserve now. It returns no error, because a caller could not do anything about one.
func (r *Reserve) Keep() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fi, err := os.Lstat(r.file(files - 1)); err == nil && fi.Mode().IsRegular() {
		return true
	}
	var fs unix.Statfs_t
	if unix.Statfs(filepath.Dir(r.dir), &fs) != nil {
		return false
	}
	size := min(maxFile, max(minFile, int64(fs.Blocks)*fs.Bsize/fileShare))
	times := uint64(freeFactor)
	if r.spent {
		times = 1
	}
	if fs.Bavail*uint64(fs.Bsize) < times*files*uint64(size) || fs.Files > 0 && fs.Ffree < times*files {
		return false
	}
	if r.fill(size) != nil {
		r.empty()
		return false
	}
	r.spent = false
	return true
}

// KeepAfter is like Keep, for a caller that has deleted something. It repeats Keep for a moment,
// because some file systems free blocks late.
func (r *Reserve) KeepAfter() {
	for tries := 5; !r.Keep() && tries > 0; tries-- {
		time.Sleep(maxWait / 20)
	}
}

func (r *Reserve) fill(size int64) error {
	err := os.Mkdir(r.dir, 0o700)
	if fi, lerr := os.Lstat(r.dir); err != nil && (lerr != nil || !fi.IsDir()) {
		return err
	}
	for i := range files {
		if err := allocate(r.file(i), size); err != nil {
			return err
		}
	}
	return nil
}

func allocate(path string, size int64) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // ext3, seccomp
		_, err = f.Write(make([]byte, size))
	}
	return errors.Join(err, f.Close())
}

// empty deletes the files, and reports whether there was one. It truncates them first, because XFS
// frees the blocks of a deleted file later.
func (r *Reserve) empty() (had bool) {
	if fi, err := os.Lstat(r.dir); err != nil || !fi.IsDir() {
		return false
	}
	for i := range files {
		if fi, err := os.Lstat(r.file(i)); err == nil && fi.Mode().IsRegular() {
			_ = os.Truncate(r.file(i), 0)
		}
		if os.Remove(r.file(i)) == nil {
			had = true
		}
	}
	return had
}

// Give gives the reserve up, and reports whether there was one.
func (r *Reserve) Give() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	had := r.empty()
	r.spent = r.spent || had
	return had
}

// Restore makes the reserve again if this process gave it up.
func (r *Reserve) Restore() {
	r.mu.Lock()
	spent := r.spent
	r.mu.Unlock()
	if spent {
		r.Keep()
	}
}

// Spend calls fn. If fn finds the disk full, Spend gives the reserve up and calls fn again, so
// calling fn twice must be safe. Keep makes the reserve again.
func (r *Reserve) Spend(fn func() error) error {
	err := fn()
	if !Full(err) || !r.Give() {
		return err
	}
	return r.Retry(fn)
}

// Retry calls fn, for a caller that has deleted something. It repeats fn for at most about a second
// while fn finds the disk full.
func (r *Reserve) Retry(fn func() error) error {
	for began := time.Now(); ; time.Sleep(maxWait / 50) {
		if err := fn(); !Full(err) || time.Since(began) > maxWait {
			return err
		}
	}
}

// Low reports whether less than 5 % of the file system's inodes are left, or less than 5 % of its
// blocks and less than 1 GiB.
func Low(dir string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil || fs.Blocks == 0 {
		return false
	}
	return fs.Bavail < fs.Blocks/20 && fs.Bavail*uint64(fs.Bsize) < 1<<30 || fs.Files > 0 && fs.Ffree < fs.Files/20
}

// Full reports whether an error means that a disk is full or a quota used up. bbolt returns some of
// these errors only as text.
func Full(err error) bool {
	if err == nil || outcome.Uncertain(err) { // what may have happened must not run again
		return false
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		strings.Contains(err.Error(), "file ") && strings.Contains(err.Error(), unix.ENOSPC.Error())
}
