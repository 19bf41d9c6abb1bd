package content

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/internal/staging"
)

// trash deletes by a rename first, and then in the background.
type trash struct {
	dir   string // ingest/, where entries get their staged names
	names *staging.Names

	mu   sync.Mutex // guards what follows
	busy int
	idle chan struct{}    // closed when busy falls to 0; nil unless somebody waits
	left map[string]error // what could not be deleted

	counting atomic.Int32 // how many callers of Store.Count want to know what is freed
	freed    atomic.Int64 // bytes, since the process began
}

// Count counts the bytes of disk blocks that deletions free from now on, until the function that it returns is called.
// That function returns their sum.
func (s *Store) Count() (end func() int64) {
	t := &s.trash
	t.counting.Add(1)
	before := t.freed.Load()
	return func() int64 {
		t.wait()
		defer t.counting.Add(-1)
		return t.freed.Load() - before
	}
}

// move gives path a staged name and returns it. A symlink is moved, not followed. Where a rename is impossible, because
// path lies on another file system, the disk has no room for another name, or a flag forbids it, it deletes path itself
// and returns "".
func (t *trash) move(path string) (string, error) {
	moved := t.names.In(t.dir, "trash")
	err := os.Rename(path, moved)
	if errors.Is(err, fs.ErrNotExist) {
		// Either path does not exist, or its directory was removed.
		if mkErr := os.Mkdir(t.dir, 0o700); mkErr == nil {
			err = os.Rename(path, moved)
		}
	}
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), reserve.Full(err):
		return "", t.removeAll(path)
	case err != nil:
		return "", err
	}
	return moved, nil
}

// remove deletes what move returned, later.
func (t *trash) remove(path string) {
	if path == "" {
		return
	}
	t.begin(func() {
		err := t.removeAll(path)
		t.mu.Lock()
		defer t.mu.Unlock()
		if delete(t.left, path); err == nil {
			return
		}
		if t.left == nil {
			t.left = map[string]error{}
		}
		t.left[path] = err
	})
}

// retry tries again to delete what could not be deleted before.
func (t *trash) retry() {
	t.mu.Lock()
	paths := slices.Collect(maps.Keys(t.left))
	t.mu.Unlock()
	for _, path := range paths {
		t.remove(path)
	}
}

// refused returns an error that lists what could not be deleted, and why.
func (t *trash) refused() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(slices.Collect(maps.Values(t.left))...)
}

// removeAll is the function removeAll, and counts what it frees while somebody wants to know.
func (t *trash) removeAll(path string) error {
	if t.counting.Load() == 0 {
		return removeAll(path)
	}
	before := blocks(path)
	err := removeAll(path)
	if err != nil {
		before -= blocks(path)
	}
	t.freed.Add(before)
	return err
}

// blocks returns the bytes of disk blocks that go with path and what is below it: none for a file that has other names.
// What can't be looked at is not counted.
func blocks(path string) (bytes int64) {
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && (d.IsDir() || st.Nlink == 1) {
			bytes += st.Blocks * 512 // stat(2)
		}
		return nil
	})
	return bytes
}

// removeAll deletes path and what is below it. A leftover.Error names what remains.
func removeAll(path string) error {
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

// begin runs fn in the background. wait waits for it.
func (t *trash) begin(fn func()) {
	t.mu.Lock()
	t.busy++
	t.mu.Unlock()
	go func() {
		fn()
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.busy--; t.busy == 0 && t.idle != nil {
			close(t.idle)
			t.idle = nil
		}
	}()
}

// wait returns when nothing is left to delete.
func (t *trash) wait() {
	t.mu.Lock()
	if t.busy == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	<-idle
}

// empty deletes what an earlier process left.
func (t *trash) empty() error {
	left, err := t.names.Left(context.Background(), t.dir)
	for _, path := range left {
		t.remove(path)
	}
	return err
}

// discard moves path away and has it deleted. It returns fs.ErrNotExist when path does not exist.
func (s *Store) discard(path string) error {
	moved, err := s.trash.move(path)
	if err == nil {
		s.trash.remove(moved)
	}
	return err
}

// stagedBeside returns a name for what is going to be renamed to path.
func (s *Store) stagedBeside(path string) string {
	return s.trash.names.In(filepath.Dir(path), "new")
}
