package dirwriter

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// droppedXattrs are the names of extended attributes that the file system does not have. They are left out, and
// reported once for the whole layer. Attributes that are wrong on every file system are refused before.
type droppedXattrs struct {
	any   atomic.Bool
	mu    sync.Mutex // guards names
	names map[string]struct{}
}

// has reports whether an attribute of this name was left out before.
func (d *droppedXattrs) has(name string) bool {
	if !d.any.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.names[name]
	return ok
}

// note gives the inode the attributes that were written, those of e, and records the names of the others.
func (d *droppedXattrs) note(ino *tarlayer.Inode, e *entry.Entry) {
	if len(e.Xattrs) == len(ino.Xattrs) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names == nil {
		d.names = map[string]struct{}{}
	}
	for name := range ino.Xattrs {
		if _, kept := e.Xattrs[name]; !kept {
			d.names[name] = struct{}{}
		}
	}
	d.any.Store(true)
	ino.Xattrs = e.Xattrs
}

// sorted returns the names.
func (d *droppedXattrs) sorted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}
