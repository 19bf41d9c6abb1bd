// Package crashstate records how a root is changed, and makes the directories that a power cut could
// have left of it.
//
// It owns nothing on disk: a Recorder changes the root that a test gives it, and a State is written
// to the directory that a test names.
//
// Its invariant: everything that a sync or a commit of the history has forced to the disk is in
// every State after it. Of the rest, a State has what a file system may keep
// (docs/adr/0044-crash-states.md).
//
// The surprising rule: a state is weaker than what ext4 or XFS leave. A change of one directory may
// be there without an earlier change of another one, and the commit of the database syncs nothing
// but the database.
package crashstate

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
)

// never is the step of what does not happen.
const never = math.MaxInt

// effect is one change that reaches the disk as a whole or not at all: of a name, or of names that a
// rename changes together, or of the attributes of an inode, or of bytes of a file.
type effect struct {
	from, to int // the steps of the history between which the change happens
	synced   int // the step that forces it to the disk, or never

	names []name // changed names, nil for other effects
	after []int  // effects that are on the disk if this one is: of the same names and of the same inode

	inode *inode // whose attributes or bytes change
	attrs *attrs // nil for bytes
	off   int64
	data  []byte
	size  int64 // the size of the file afterwards, if it is cut; -1 otherwise
}

// name is a name in a directory with the inode that it gets; nil: the name is removed.
type name struct {
	dir   *inode
	name  string
	inode *inode
}

// Recorder is an fsys.FS that changes the files below a root and records what it does. It does not
// sync: the histories are made on file systems in memory.
type Recorder struct {
	path string

	mu      sync.Mutex // guards the fields below; held while the root is changed
	root    *inode
	steps   []string
	effects []*effect
	filling int // the first step of the Builds that run, or never
	builds  int
}

var _ fsys.FS = (*Recorder)(nil)

// NewRecorder returns a Recorder for a root whose directory is missing or empty. What is in the
// directory above the root does not count.
func NewRecorder(root string) *Recorder {
	return &Recorder{path: root, root: newDir(), filling: never}
}

// Position returns the number of steps so far. A power cut at a position comes after the steps
// before it, and while the step with that number is under way.
func (r *Recorder) Position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.steps)
}

// Steps describes the steps of the history, a line each.
func (r *Recorder) Steps() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.steps...)
}

// Changed records that a program has changed what is at path and below it, without a sync.
func (r *Recorder) Changed(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.step("changed " + r.rel(path))
	return r.capture(path, at)
}

func (r *Recorder) rel(path string) string {
	if rel, err := filepath.Rel(r.path, path); err == nil {
		return rel
	}
	return path
}

// step adds a step and returns its number. The caller holds mu.
func (r *Recorder) step(text string) int {
	r.steps = append(r.steps, text)
	return len(r.steps) - 1
}

// add adds an effect of a step. The caller holds mu.
func (r *Recorder) add(e *effect) {
	e.synced = never
	i := len(r.effects)
	r.effects = append(r.effects, e)
	for _, n := range e.names {
		old := n.dir.names[n.name]
		for _, last := range []*int{n.dir.last(n.name), old.moved(), n.inode.moved()} {
			if last != nil {
				if *last >= 0 && *last != i {
					e.after = append(e.after, *last)
				}
				*last = i
			}
		}
		if n.inode == nil {
			delete(n.dir.names, n.name)
		} else {
			n.dir.names[n.name] = n.inode
		}
	}
}

// force records that the step forces those effects to the disk that which reports. The caller holds
// mu.
func (r *Recorder) force(step int, which func(*effect) bool) {
	for _, e := range r.effects {
		if e.synced == never && e.to < step && which(e) {
			e.synced = step
		}
	}
}

// OpenFile implements fsys.FS.
func (r *Recorder) OpenFile(path string, flag int, perm fs.FileMode) (fsys.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	node := r.find(path)
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, errclass.Ensure(err)
	}
	if flag&os.O_CREATE != 0 && node == nil || flag&os.O_TRUNC != 0 {
		at := r.step("create " + r.rel(path))
		if node == nil {
			dir, base := r.parent(path)
			node = newInode(unix.S_IFREG, attrsOf(path))
			node.attrs.mtime = nil // each write changes it
			r.add(&effect{from: at, to: at, names: []name{{dir, base, node}}})
		} else {
			node.data = nil
			r.add(&effect{from: at, to: at, inode: node, size: 0})
		}
	}
	return &file{f: f, r: r, inode: node, appends: flag&os.O_APPEND != 0}, nil
}

// named changes names in one step, after the operating system has done so.
func (r *Recorder) named(text string, change func() error, names func() []name) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := names()
	if err := change(); err != nil {
		return errclass.Ensure(err)
	}
	at := r.step(text)
	r.add(&effect{from: at, to: at, names: changed})
	return nil
}

// Mkdir implements fsys.FS.
func (r *Recorder) Mkdir(path string, perm fs.FileMode) error {
	return r.named("mkdir "+r.rel(path), func() error { return os.Mkdir(path, perm) }, func() []name {
		if path == r.path {
			return nil
		}
		dir, base := r.parent(path)
		made := newDir()
		made.first.mode = uint32(perm)
		return []name{{dir, base, made}}
	})
}

// Rename implements fsys.FS.
func (r *Recorder) Rename(from, to string) error {
	return r.named("rename "+r.rel(from)+" "+r.rel(to), func() error { return os.Rename(from, to) }, func() []name {
		node := r.find(from)
		fromDir, fromBase := r.parent(from)
		toDir, toBase := r.parent(to)
		return []name{{fromDir, fromBase, nil}, {toDir, toBase, node}}
	})
}

// Link implements fsys.FS.
func (r *Recorder) Link(from, to string) error {
	return r.named("link "+r.rel(from)+" "+r.rel(to), func() error { return os.Link(from, to) }, func() []name {
		dir, base := r.parent(to)
		return []name{{dir, base, r.find(from)}}
	})
}

// Remove implements fsys.FS.
func (r *Recorder) Remove(path string) error {
	return r.named("remove "+r.rel(path), func() error { return os.Remove(path) }, func() []name {
		r.find(path)
		dir, base := r.parent(path)
		return []name{{dir, base, nil}}
	})
}

// RemoveTree implements fsys.FS.
func (r *Recorder) RemoveTree(path string, remove func() error) error {
	r.mu.Lock()
	begin := r.step("removetree " + r.rel(path))
	r.find(path)
	r.mu.Unlock()
	err := remove()
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.step("removed " + r.rel(path))
	dir, base := r.parent(path)
	if node := dir.names[base]; node != nil {
		node.each(func(dir *inode, base string) {
			r.add(&effect{from: begin, to: end, names: []name{{dir, base, nil}}})
		})
		if _, lerr := os.Lstat(path); lerr != nil {
			r.add(&effect{from: begin, to: end, names: []name{{dir, base, nil}}})
		}
	}
	return errclass.Ensure(err)
}

// Build implements fsys.FS.
func (r *Recorder) Build(path string, fill, sync func() error) error {
	r.mu.Lock()
	begin := r.step("build " + r.rel(path))
	r.builds++
	r.filling = min(r.filling, begin)
	r.mu.Unlock()
	err := fill()
	r.mu.Lock()
	r.step("built " + r.rel(path))
	if r.builds--; r.builds == 0 {
		r.filling = never
	}
	cerr := r.capture(path, begin)
	r.mu.Unlock()
	if err != nil || sync == nil {
		return errclass.Ensure(err)
	}
	if err = sync(); err == nil {
		err = cerr
	}
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		at := r.step("synced " + r.rel(path))
		if node := r.find(path); node != nil {
			below := node.below()
			r.force(at, func(e *effect) bool { return e.within(below) })
		}
	}
	return errclass.Ensure(err)
}

// SyncDir implements fsys.FS.
func (r *Recorder) SyncDir(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := os.Stat(path); err != nil {
		return errclass.Ensure(err)
	}
	at, dir := r.step("syncdir "+r.rel(path)), r.find(path)
	r.force(at, func(e *effect) bool { return e.changes(dir) })
	return nil
}

// Syncfs implements fsys.FS.
func (r *Recorder) Syncfs(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.step("syncfs " + r.rel(path))
	r.force(at, func(*effect) bool { return true })
	return nil
}

// Commit implements fsys.FS. The whole file is kept, because the state of a database between two
// commits is not of this package's making.
func (r *Recorder) Commit(path string, commit func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	node := r.find(path)
	if err := commit(); err != nil {
		return errclass.Ensure(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return errclass.Ensure(err)
	}
	at := r.step(fmt.Sprintf("commit %s", r.rel(path)))
	node.versions = append(node.versions, version{at, data})
	return nil
}

// changes reports whether the effect changes a name in a directory, or the attributes of the
// directory.
func (e *effect) changes(dir *inode) bool {
	for _, n := range e.names {
		if n.dir == dir {
			return true
		}
	}
	return e.inode == dir
}

// within reports whether the effect changes one of these inodes.
func (e *effect) within(inodes map[*inode]bool) bool {
	for _, n := range e.names {
		if inodes[n.dir] {
			return true
		}
	}
	return inodes[e.inode]
}
