// Package fsystest is an fsys.FS for tests: it changes real files, makes chosen operations fail,
// hang or crash, and records a history.
//
// It owns nothing on disk; the root that it is given belongs to the test.
//
// Its invariant: the history lists every operation that was asked for, in the order in which they
// began, with the outcome of those that a fault hit.
//
// The surprising rule: after a crash every operation fails with ErrCrashed and changes nothing, but
// the process goes on. The test closes what it opened, and opens the root again with another FS as
// the next process would.
package fsystest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
)

// ErrCrashed is the error of the operation at which a crash fault hit, and of all later ones.
var ErrCrashed = errors.New("the machine has stopped")

// FS wraps fsys.OS. See the comment at fault for the language of faults.
type FS struct {
	root string
	hung chan struct{} // receives one value for each operation that hangs; has room for many

	mu      sync.Mutex // guards the fields below
	faults  []*fault
	watches []watch
	history []string
	hits    int
	crashed bool
	release chan struct{} // closed by Release; nil while nothing hangs
}

// New returns an FS for the directory root with these faults, one line each. It fails the test when
// a line is not valid. Operations that hang go on when the test ends.
func New(t testing.TB, root string, faults ...string) *FS {
	t.Helper()
	f := &FS{root: root, hung: make(chan struct{}, 1024)}
	f.Add(t, faults...)
	t.Cleanup(f.Release)
	return f
}

// Add adds faults. Their counts begin now.
func (f *FS) Add(t testing.TB, faults ...string) {
	t.Helper()
	for _, line := range faults {
		fault, err := parseFault(line)
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.faults = append(f.faults, fault)
		f.mu.Unlock()
	}
}

// Each calls run with the faults "any #1: ACTION", "any #2: ACTION" and so on, until one hits no
// operation, which run reports. So every operation that run does is hit once.
func Each(action string, run func(fault string) (hit bool)) {
	for n := 1; run(fmt.Sprintf("any #%d: %s", n, action)); n++ {
	}
}

// Clear removes all faults and watches. What crashed stays crashed.
func (f *FS) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.watches = nil, nil
}

// watch is a function that Before was given.
type watch struct {
	op, pattern string
	fn          func(path string)
}

// Before has fn called before each operation of that name and pattern, as in a fault; "" matches
// every path. fn may use the FS. An operation that it leads to is recorded first.
func (f *FS) Before(op, pattern string, fn func(path string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches = append(f.watches, watch{op, pattern, fn})
}

func (f *FS) watch(op, path string) {
	f.mu.Lock()
	watches := slices.Clone(f.watches)
	f.mu.Unlock()
	for _, w := range watches {
		if matches(w.op, w.pattern, op, f.rel(path)) {
			w.fn(path)
		}
	}
}

// Hung receives a value for each operation that begins to hang.
func (f *FS) Hung() <-chan struct{} { return f.hung }

// Release lets the operations that hang go on.
func (f *FS) Release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.release != nil {
		close(f.release)
		f.release = nil
	}
}

// Crash makes every later operation fail.
func (f *FS) Crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
}

// Hits returns how many operations a fault has hit. Those after a crash do not count.
func (f *FS) Hits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits
}

// History returns one line for each operation: its name, the paths relative to the root, for a
// write the offset and the number of bytes, and " = " and the outcome when a fault hit it:
//
//	create ingest/6b/data
//	write ingest/6b/data 0+4096
//	sync ingest/6b/data
//	rename ingest/6b/data blobs/sha256/aa = input/output error
func (f *FS) History() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.history)
}

func (f *FS) rel(path string) string {
	if rel, err := filepath.Rel(f.root, path); err == nil {
		return rel
	}
	return path
}

// do is run for a method of FS, whose errors have a class.
func (f *FS) do(op, path, text string, half, whole func() error) error {
	return errclass.Ensure(f.run(op, path, text, half, whole))
}

// run records an operation and carries it out, unless a fault prevents that. path is what it
// changes, text what the history shows after the operation's name. half does a part of it; nil:
// nothing.
func (f *FS) run(op, path, text string, half, whole func() error) error {
	f.watch(op, path)
	hit, err := f.begin(op, path, text)
	switch {
	case err != nil:
		return err
	case hit == nil:
		return whole()
	case hit.action == hang:
		if hit.at == before {
			f.wait()
		}
		err := whole()
		if hit.at == after {
			f.wait()
		}
		return err
	case hit.at == after:
		err = whole()
	case hit.at == during && half != nil:
		err = half()
	}
	if hit.action == crash {
		return &fs.PathError{Op: op, Path: path, Err: ErrCrashed}
	}
	if err != nil {
		return err
	}
	return &fs.PathError{Op: op, Path: path, Err: hit.err}
}

// begin records an operation and returns the fault that hits it.
func (f *FS) begin(op, path, text string) (hit *fault, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	line := op + " " + text
	if f.crashed {
		f.history = append(f.history, line+" = crashed")
		return nil, &fs.PathError{Op: op, Path: path, Err: ErrCrashed}
	}
	for _, fault := range f.faults {
		if fault.hits(op, f.rel(path)) && hit == nil {
			hit = fault
		}
	}
	if hit != nil {
		outcome := []string{fail: hit.err.Error(), hang: "hangs", crash: "crash"}[hit.action]
		line += " = " + outcome + []string{"", " during", " after"}[hit.at]
		f.crashed = hit.action == crash
		f.hits++
	}
	f.history = append(f.history, line)
	return hit, nil
}

func (f *FS) wait() {
	f.mu.Lock()
	if f.release == nil {
		f.release = make(chan struct{})
	}
	release := f.release
	f.mu.Unlock()
	f.hung <- struct{}{}
	<-release
}

// OpenFile records "create" when flag has os.O_CREATE, else "open".
func (f *FS) OpenFile(path string, flag int, perm fs.FileMode) (file fsys.File, err error) {
	op := "open"
	if flag&os.O_CREATE != 0 {
		op = "create"
	}
	err = f.do(op, path, f.rel(path), nil, func() error {
		opened, err := os.OpenFile(path, flag, perm)
		if err == nil {
			file = &File{f: opened, fs: f}
		}
		return err
	})
	if err != nil && file != nil { // a fault after the operation
		file.Close()
		file = nil
	}
	return file, err
}

// Mkdir implements fsys.FS.
func (f *FS) Mkdir(path string, perm fs.FileMode) error {
	return f.do("mkdir", path, f.rel(path), nil, func() error { return os.Mkdir(path, perm) })
}

// Rename implements fsys.FS.
func (f *FS) Rename(from, to string) error {
	return f.do("rename", to, f.rel(from)+" "+f.rel(to), nil, func() error { return os.Rename(from, to) })
}

// Link implements fsys.FS.
func (f *FS) Link(from, to string) error {
	return f.do("link", to, f.rel(from)+" "+f.rel(to), nil, func() error { return os.Link(from, to) })
}

// Remove implements fsys.FS.
func (f *FS) Remove(path string) error {
	return f.do("remove", path, f.rel(path), nil, func() error { return os.Remove(path) })
}

// RemoveTree implements fsys.FS.
func (f *FS) RemoveTree(path string, remove func() error) error {
	return f.do("removetree", path, f.rel(path), func() error { return removeHalf(path) }, remove)
}

// removeHalf deletes every second file below path.
func removeHalf(path string) error {
	n := 0
	return filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if n++; n%2 == 1 {
			return os.Remove(path)
		}
		return nil
	})
}

// Build implements fsys.FS. The history shows "sync" after the path if the directory is to be
// synced.
func (f *FS) Build(path string, fill, sync func() error) error {
	text := f.rel(path)
	if sync != nil {
		text += " sync"
	}
	return f.do("build", path, text, fill, func() error { return fsys.OS.Build(path, fill, sync) })
}

// SyncDir implements fsys.FS. It syncs nothing: no test could see a difference, and it would take
// long.
func (f *FS) SyncDir(path string) error {
	return f.do("syncdir", path, f.rel(path), nil, func() error { return exists(path) })
}

// Syncfs implements fsys.FS. It syncs nothing.
func (f *FS) Syncfs(path string) error {
	return f.do("syncfs", path, f.rel(path), nil, func() error { return exists(path) })
}

// Commit implements fsys.FS.
func (f *FS) Commit(path string, commit func() error) error {
	return f.do("commit", path, f.rel(path), nil, commit)
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

// File is an open file of an FS. Its name in the history is the path with which it was opened. It
// does not embed *os.File, whose ReadFrom would write without being recorded.
type File struct {
	f  *os.File
	fs *FS

	mu     sync.Mutex // guards offset
	offset int64      // of Write
}

// Write implements io.Writer. Offsets in the history count the bytes that Write has written.
func (f *File) Write(p []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err = f.write(f.offset, p, f.f.Write)
	f.offset += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	return f.write(off, p, func(p []byte) (int, error) { return f.f.WriteAt(p, off) })
}

func (f *File) write(off int64, p []byte, write func([]byte) (int, error)) (n int, err error) {
	part := func(p []byte) func() error {
		return func() (err error) {
			n, err = write(p)
			return err
		}
	}
	text := fmt.Sprintf("%s %d+%d", f.fs.rel(f.Name()), off, len(p))
	err = f.fs.run("write", f.Name(), text, part(p[:len(p)/2]), part(p))
	return n, err
}

// Sync implements fsys.File. It syncs nothing.
func (f *File) Sync() error {
	return f.fs.run("sync", f.Name(), f.fs.rel(f.Name()), nil, func() error {
		_, err := f.f.Stat() // fails if the file is closed
		return err
	})
}

// Truncate implements fsys.File.
func (f *File) Truncate(size int64) error {
	text := fmt.Sprintf("%s %d", f.fs.rel(f.Name()), size)
	return f.fs.run("truncate", f.Name(), text, nil, func() error { return f.f.Truncate(size) })
}

// Chmod implements fsys.File.
func (f *File) Chmod(mode fs.FileMode) error {
	text := fmt.Sprintf("%s %04o", f.fs.rel(f.Name()), mode)
	return f.fs.run("chmod", f.Name(), text, nil, func() error { return f.f.Chmod(mode) })
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) { return f.f.Read(p) }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Close implements io.Closer. It is no operation of the history: it makes nothing durable.
func (f *File) Close() error { return f.f.Close() }

// Name implements fsys.File.
func (f *File) Name() string { return f.f.Name() }

// Fd implements fsys.File.
func (f *File) Fd() uintptr { return f.f.Fd() }

// Stat implements fsys.File.
func (f *File) Stat() (fs.FileInfo, error) { return f.f.Stat() }
