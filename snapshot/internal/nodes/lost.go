package nodes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Some file systems have no extended attributes, or only some kinds of them. Attributes of an image that cannot be set
// are left out, as other programs do. If a layer lacks attributes, its record has their names; if a copy lacks them,
// their names are logged.

// maxDropped is the largest number of names that DroppedText lists.
const maxDropped = 8

// DroppedText returns the names of dropped attributes as one text for a record or a log, "" if there are none. It makes
// the first names in the slice printable in place.
func DroppedText(names []string) string {
	more := ""
	if len(names) > maxDropped {
		more = fmt.Sprintf(" and %d more", len(names)-maxDropped)
		names = names[:maxDropped]
	}
	for i := range names {
		names[i] = printable.Text(names[i])
	}
	return strings.Join(names, ", ") + more
}

// LostXattrs collects the names of extended attributes that copies lack. Note and Warn may be called concurrently.
type LostXattrs struct {
	mu    sync.Mutex // guards names
	names map[string]bool
}

// Note adds the names of those attributes in had that e lacks.
func (d *LostXattrs) Note(had map[string]string, e *entry.Entry) {
	if len(had) == len(e.Xattrs) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names == nil {
		d.names = map[string]bool{}
	}
	for name := range had {
		if _, kept := e.Xattrs[name]; !kept {
			d.names[name] = true
		}
	}
}

// Warn logs the names, if there are any. what begins the message.
func (d *LostXattrs) Warn(ctx context.Context, what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.names) > 0 {
		log.G(ctx).Warnf("%s: the file system does not have these extended attributes, which are left out: %s",
			what, DroppedText(slices.Sorted(maps.Keys(d.names))))
	}
}

// Without returns a list of the same entries without the attributes that were noted. All calls of Note must have
// returned before.
func (d *LostXattrs) Without(entries func(visit func(*entry.Entry) error) error) func(func(*entry.Entry) error) error {
	if len(d.names) == 0 {
		return entries
	}
	return func(visit func(*entry.Entry) error) error {
		return entries(func(e *entry.Entry) error {
			kept := *e
			kept.Xattrs = maps.Clone(e.Xattrs)
			maps.DeleteFunc(kept.Xattrs, func(name, _ string) bool { return d.names[name] })
			if len(kept.Xattrs) == 0 {
				kept.Xattrs = nil
			}
			return visit(&kept)
		})
	}
}
