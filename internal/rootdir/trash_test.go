package rootdir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/metadata"
)

// tree makes an entry without a record in layers/.
func (d *testDir) tree(name string) string {
	d.t.Helper()
	path := d.Path(Layers, name)
	if err := os.MkdirAll(filepath.Join(path, "fs", "sub"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "fs", "file"), []byte("content"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// empty fails the test if a pool has an entry.
func (d *testDir) empty() {
	d.t.Helper()
	if left := d.entries(); len(left) > 0 {
		d.t.Errorf("left: %q", left)
	}
}

// TestTrash: entries are deleted in the background, and one that does not exist is no error. The
// workers end when nothing is left to do.
func TestTrash(t *testing.T) {
	d := openTest(t, nil)
	if err := d.Trash(d.tree("1"), d.Path(Layers, "none"), d.tree("2")); err != nil {
		t.Error(err)
	}
	d.Wait()
	d.empty()
	d.work.Wait()
	if d.queue.workers != 0 {
		t.Errorf("%d workers", d.queue.workers)
	}
	if moved, err := d.Aside(d.Path(Layers, "none")); moved != "" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("aside of what does not exist: %q, %v", moved, err)
	}
}

// TestAsideInPlace: an entry that can't be renamed is deleted in its position.
func TestAsideInPlace(t *testing.T) {
	for _, errno := range []string{"EXDEV", "EPERM", "ENOSPC", "EDQUOT"} {
		root := t.TempDir()
		d := reopenTest(t, root, fsystest.New(t, root, "rename layers/.*: fail "+errno))
		path := d.tree("1")
		if moved, err := d.Aside(path); moved != "" || err != nil {
			t.Errorf("%s: %q, %v", errno, moved, err)
		}
		d.empty()
	}
	root := t.TempDir()
	d := reopenTest(t, root, fsystest.New(t, root, "rename layers/.*: fail EIO"))
	path := d.tree("1")
	if err := d.Trash(path); err == nil || !exists(path) {
		t.Errorf("an entry that can't be renamed for another reason: %v, exists %v", err, exists(path))
	}
}

// TestTrashPool: entries to be deleted wait in Options.TrashPool, which is made again if it is missing.
func TestTrashPool(t *testing.T) {
	d := openTest(t, nil)
	d.opts.TrashPool = Ingest
	if err := os.Remove(d.Path(Ingest)); err != nil {
		t.Fatal(err)
	}
	moved, err := d.Aside(d.tree("1"))
	if err != nil || filepath.Dir(moved) != d.Path(Ingest) || !exists(moved) {
		t.Errorf("moved to %s: %v", moved, err)
	}
	d.Delete(moved, "")
	d.Wait()
	d.empty()
}

// TestMoveForOwner moves a directory that its owner may not write. An ordinary user has to make it
// writable for the rename.
func TestMoveForOwner(t *testing.T) {
	root := t.TempDir()
	d := reopenTest(t, root, fsystest.New(t, root, "rename layers/.*: fail EACCES"))
	path := d.tree("1")
	if err := os.Chmod(path, 0o500); err != nil {
		t.Fatal(err)
	}
	moved, err := d.Aside(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(moved)
	if err != nil || fi.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", fi, err)
	}
	d.Delete(moved)
	d.Wait()
	d.empty()
}

// TestEmpty: Empty deletes the trees that wait and those whose deletion failed before. Its error lists
// the files that remain.
func TestEmpty(t *testing.T) {
	d := openTest(t, nil)
	stuck := atomic.Bool{}
	stuck.Store(true)
	d.opts.Remove = func(ctx context.Context, path string, freed func(int64)) error {
		if stuck.Load() {
			return leftover.New(path, false, errors.New("stuck"))
		}
		return removeAll(ctx, path, freed)
	}
	if err := d.Trash(d.tree("1"), d.tree("2")); err != nil {
		t.Error(err)
	}
	d.Wait()
	var left *leftover.Error
	if err := d.Empty(t.Context()); !errors.As(err, &left) || left.Count != 2 {
		t.Errorf("what remains: %v", err)
	}
	stuck.Store(false)
	if err := d.Empty(t.Context()); err != nil {
		t.Error(err)
	}
	d.empty()
}

// TestEmptyInterrupted: if the context of Empty ends while it deletes a tree, a worker deletes that
// tree.
func TestEmptyInterrupted(t *testing.T) {
	d := openTest(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	began, block := make(chan struct{}, 100), make(chan struct{})
	d.opts.Remove = func(ctx context.Context, path string, freed func(int64)) error {
		began <- struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-block:
			return removeAll(ctx, path, freed)
		}
	}
	for i := range maxWorkers + 1 {
		if err := d.Trash(d.tree(strings.Repeat("1", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error)
	go func() { ended <- d.Empty(ctx) }()
	for range maxWorkers + 1 {
		<-began
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(block)
	d.Wait()
	d.empty()
}

// TestClose: Close ends the deletions. The next process deletes, in the background, all staged names
// that it did not make itself, and everything in staging/.
func TestClose(t *testing.T) {
	root := t.TempDir()
	d := reopenTest(t, root, nil)
	d.opts.Remove = func(ctx context.Context, _ string, _ func(int64)) error {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := d.Trash(d.tree("1")); err != nil {
		t.Error(err)
	}
	d.Close()
	if err := d.Trash(d.tree("2")); err != nil { // as by a call that ends later
		t.Error(err)
	}
	d.db.Close()
	staged := d.Stage(Snapshots, "snapshot")
	nested := d.StageBeside(d.Path(Rootfs, "sha256", hex), "rootfs")
	for _, path := range []string{staged, nested, d.Path(Scratch, "hosts"), d.Path(Layers, "lost+found")} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(d.entries()); got != 5 {
		t.Errorf("%d entries are left: %q", got, d.entries())
	}
	next := reopenTest(t, root, nil)
	if err := next.DeleteLeftovers(); err != nil {
		t.Fatal(err)
	}
	mine := next.Stage(Layers, "layer")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(next.entries()) != 2 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	next.Wait()
	if got := next.entries(); len(got) != 2 || got[0] != mine {
		t.Errorf("left: %q, want %s and lost+found", got, mine)
	}
	if exists(d.Path(Scratch, "hosts")) {
		t.Error("a file of staging/ is left")
	}
}

// TestMoveStaged refuses every path that is neither a staged name nor below one.
func TestMoveStaged(t *testing.T) {
	d := openTest(t, nil)
	staged := d.Stage(Layers, "layer")
	if err := d.Build(staged, func() error { return os.Mkdir(filepath.Join(staged, "fs"), 0o700) }, nil); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{d.Path(Layers, "1"), d.Path(Layers), d.Path("..", "1"), d.Path()} {
		if err := d.MoveStaged(staged, to); !errdefs.IsInvalidArgument(err) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	for _, to := range []string{d.Stage(Snapshots, "moved"), d.StageBeside(d.Path(Rootfs, "sha256", hex), "rootfs")} {
		if err := d.MoveStaged(staged, to); err != nil {
			t.Errorf("to %s: %v", to, err)
		}
		staged = to
	}
	if err := d.MoveStaged(filepath.Join(staged, "fs"), filepath.Join(staged, "seal")); err != nil {
		t.Errorf("within what is being built: %v", err)
	}
}

// TestCount counts the blocks that are freed, and not those of a file that has another name.
func TestCount(t *testing.T) {
	d := openTest(t, nil)
	path := d.tree("1")
	if err := os.Link(filepath.Join(path, "fs", "file"), d.Path(Scratch, "other")); err != nil {
		t.Fatal(err)
	}
	before := blocks(path)
	end := d.Count()
	if err := d.Trash(path); err != nil {
		t.Error(err)
	}
	d.Wait()
	if got := end(); got != before {
		t.Errorf("%d bytes, want %d", got, before)
	}
}

// TestThrottle: a caller waits while very many trees are to be deleted, but not for long and not
// after its context has ended.
func TestThrottle(t *testing.T) {
	d := openTest(t, nil)
	wait := func(ctx context.Context) time.Duration {
		begin := time.Now()
		d.Throttle(ctx)
		return time.Since(begin)
	}
	d.queue.workers = maxWorkers // as if all were busy
	d.queue.put(make([]string, 1))
	if got := wait(t.Context()); got > throttlePause/2 {
		t.Errorf("waited for %v without a reason", got)
	}
	for range throttleFrom {
		d.queue.put([]string{"tree"})
	}
	if got := wait(t.Context()); got < throttlePause {
		t.Errorf("waited for %v only", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := wait(ctx); got > throttlePause/2 {
		t.Errorf("waited for %v after the end of the context", got)
	}
	d.queue.waiting, d.queue.workers = nil, 0
}

// TestNumbers: no number is given out twice, whether a block is taken in a transaction of its own or
// with a record, and none that is in use is given out.
func TestNumbers(t *testing.T) {
	d := openTest(t, nil)
	for _, taken := range []string{"layers/7", "snapshots/9"} {
		if err := os.Mkdir(d.Path(taken), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	seen := map[string]bool{"7": true, "9": true}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range numberBlock {
				name, err := d.newNumber()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[name] {
					t.Errorf("number %s comes twice or is in use", name)
				}
				seen[name] = true
				mu.Unlock()
				if d.numbers.low() {
					if err := d.record(kind{}, true, func(*metadata.Tx) error { return nil }); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}
