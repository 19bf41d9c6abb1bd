package unpack

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// droppedXattrs are the names of extended attributes that the file system does not have. What is wrong with a layer on
// every file system is refused before; these are left out, and reported once for all.
type droppedXattrs struct {
	some  atomic.Bool
	mu    sync.Mutex // guards names
	names map[string]struct{}
}

// has reports whether an attribute of this name was dropped before.
func (d *droppedXattrs) has(name string) bool {
	if !d.some.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.names[name]
	return ok
}

// note gives the inode the attributes that its entry has kept.
func (d *droppedXattrs) note(ino *inode, e *entry.Entry) {
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
	d.some.Store(true)
	ino.Xattrs = e.Xattrs
}

// sorted returns the names.
func (d *droppedXattrs) sorted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}
