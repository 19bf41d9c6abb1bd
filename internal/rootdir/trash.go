package rootdir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/internal/reserve"
)

// While at least throttleFrom trees wait to be deleted, Throttle waits, for throttlePause at most.
const (
	throttleFrom  = 1024
	throttlePause = 100 * time.Millisecond
)

// Trash gives entries that have no record staged names, and deletes them in the background. A path
// without a file is no error.
func (d *Dir) Trash(paths ...string) error {
	var moved []string
	var errs []error
	for _, path := range paths {
		to, err := d.Aside(path)
		if to != "" {
			moved = append(moved, to)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	d.Delete(moved...)
	return errors.Join(errs...)
}

// Aside gives an entry that has no record a staged name and returns the new path, for Delete or
// Empty. It returns fs.ErrNotExist if there is no entry. Where a rename is impossible, because the
// entry lies on another file system, the disk has no room for another name or a flag forbids it,
// Aside deletes the entry in its position and returns "".
func (d *Dir) Aside(path string) (moved string, err error) {
	dir := filepath.Dir(path)
	if d.opts.TrashPool != "" {
		dir = d.Path(d.opts.TrashPool)
	}
	moved = d.names.pathIn(dir, "trash")
	err = d.move(path, moved)
	if errors.Is(err, fs.ErrNotExist) && d.opts.TrashPool != "" && d.fs.Mkdir(dir, 0o700) == nil {
		err = d.move(path, moved) // the pool was missing
	}
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), reserve.Full(err):
		ctx, release := d.work.Bind(context.Background())
		defer release()
		return "", d.remove(ctx, path)
	case err != nil:
		return "", err
	}
	return moved, nil
}

// move renames a file or directory. An ordinary user may move only directories that it may write,
// because the rename changes their "..". move makes such a directory writable for the rename, and
// restores and syncs its former mode.
func (d *Dir) move(from, to string) error {
	err := d.fs.Rename(from, to)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	fi, lerr := os.Lstat(from)
	if lerr != nil || !fi.IsDir() || fi.Mode()&0o200 != 0 {
		return err
	}
	if os.Chmod(from, fi.Mode()|0o700) != nil {
		return err
	}
	f, lerr := os.Open(from)
	if lerr != nil {
		return errors.Join(err, os.Chmod(from, fi.Mode()))
	}
	defer f.Close()
	return errors.Join(d.fs.Rename(from, to), f.Chmod(fi.Mode()), f.Sync())
}

func (d *Dir) remove(ctx context.Context, path string) error {
	return d.fs.RemoveTree(path, func() error { return d.opts.Remove(ctx, path, d.queue.counter()) })
}

// Delete deletes trees in the background. They have staged names; "" stands for none.
func (d *Dir) Delete(paths ...string) { d.startWorkers(d.queue.put(paths)) }

func (d *Dir) startWorkers(n int) {
	for range n {
		d.work.Go("deletion", func(ctx context.Context) error {
			for {
				path, ok := d.queue.nextForWorker(ctx)
				if !ok {
					return nil
				}
				if err := d.deleteTaken(ctx, path); err != nil && ctx.Err() == nil {
					d.logLeft(ctx, path, err)
				}
			}
		})
	}
}

// deleteTaken deletes a tree that was taken from the queue. If ctx ends it, the tree is queued
// again.
func (d *Dir) deleteTaken(ctx context.Context, path string) error {
	err := panics.Call("deletion", func() error {
		defer d.deleting.Lock(path)()
		return d.remove(ctx, path)
	})
	if err != nil && ctx.Err() != nil { // the next sweep or the next opening of the root continues
		d.queue.done(path, nil)
		d.Delete(path)
		return ctx.Err()
	}
	d.queue.done(path, err)
	return err
}

// logLeft logs that a deletion is incomplete. Files that a flag already protected from an earlier
// process are logged at debug level, because gc lists them and every opening would repeat the
// warning.
func (d *Dir) logLeft(ctx context.Context, path string, err error) {
	left, _ := leftover.Split(err)
	if left != nil && left.Protected && !d.names.made(filepath.Base(path)) {
		log.G(ctx).WithError(err).Debug("deletion is incomplete")
		return
	}
	log.G(ctx).WithError(err).Warn("deletion is incomplete")
}

// Empty deletes trees with staged names, and everything that waits to be deleted, and the workers of
// the background help. It returns when all of these deletions have ended, with the errors of what
// remains; a leftover.Error lists files. If ctx ends, Empty returns its error, and the workers go on.
func (d *Dir) Empty(ctx context.Context, paths ...string) error {
	workers, until := d.queue.retry(paths)
	d.startWorkers(workers)
	for ctx.Err() == nil {
		path, ok := d.queue.next(until)
		if !ok {
			break
		}
		_ = d.deleteTaken(ctx, path) // the queue keeps the error
	}
	busy, _ := d.queue.state()
	for _, done := range busy {
		select {
		case <-ctx.Done():
		case <-done:
		}
	}
	_, failed := d.queue.state()
	return leftover.Join(ctx.Err(), failed)
}

// Wait returns when nothing waits to be deleted or is being deleted. It must not be called after
// Close.
func (d *Dir) Wait() {
	for ended := d.queue.ended(); ended != nil; ended = d.queue.ended() {
		<-ended
	}
}

// Throttle is called before a directory is made. It waits while very many trees wait to be deleted,
// but for 100 ms at most, so that callers can't make and remove directories much faster than these are
// deleted. Removals do not call it, because containerd's collector removes under a lock.
func (d *Dir) Throttle(ctx context.Context) {
	const step = throttlePause / 20
	for waited := time.Duration(0); waited < throttlePause && d.queue.length() >= throttleFrom; waited += step {
		select {
		case <-ctx.Done():
			return
		case <-time.After(step):
		}
	}
}

// Count begins to count the bytes of disk blocks that deletions free. end stops counting and returns
// the sum.
func (d *Dir) Count() (end func() int64) {
	q := &d.queue
	q.counting.Add(1)
	before := q.freed.Load()
	return func() int64 {
		defer q.counting.Add(-1)
		return q.freed.Load() - before
	}
}

// removeAll is the default of Options.Remove.
func removeAll(_ context.Context, path string, freed func(bytes int64)) error {
	if freed != nil {
		before := blocks(path)
		defer func() { freed(before - blocks(path)) }()
	}
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	at := path
	var pe *fs.PathError
	if errors.As(err, &pe) && filepath.IsAbs(pe.Path) {
		at = pe.Path
	}
	return leftover.New(at, leftover.Protected(unix.AT_FDCWD, at), err)
}

// blocks returns the bytes of disk blocks that a deletion of path and everything below it frees. A
// file that has other names frees none. Entries that can't be read do not count.
func blocks(path string) (bytes int64) {
	_ = filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && (e.IsDir() || st.Nlink == 1) {
			const block = 512 // stat(2)
			bytes += st.Blocks * block
		}
		return nil
	})
	return bytes
}
