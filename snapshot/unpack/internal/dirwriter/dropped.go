package dirwriter

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// droppedXattrs collects the names of extended attributes that the file system does not support. They are left out, and
// reported once for the whole layer. Attributes that are wrong on every file system were refused earlier.
type droppedXattrs struct {
	any   atomic.Bool // names is not empty; without a lock, for the many layers that drop nothing
	mu    sync.Mutex  // guards names
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

// note records the names of those attributes of the inode that e lacks, and then sets the inode's attributes to those
// of e, which were written.
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

// sorted returns the names in order.
func (d *droppedXattrs) sorted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}
