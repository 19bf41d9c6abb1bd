// Package doubts knows which layers and root file systems have to be compared with their seals before they are served.
//
// It owns nothing on disk. Its invariant: a record that is provisional when a root is opened is in doubt until its
// directory was compared or replaced. The surprising rule: a record that this process wrote is not in doubt, although
// it is provisional as well, because this process knows that it has written the bytes.
package doubts

import (
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// Set has the records of which this process does not know whether their bytes are on the disk: those that another
// process left provisional, and those that Add names.
type Set struct {
	mu    sync.Mutex // guards nodes
	nodes map[metadata.Node]struct{}
}

// Load doubts every provisional record of the database, and no other.
func (d *Set) Load(db *metadata.DB) error {
	d.nodes = map[metadata.Node]struct{}{}
	return db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			if l, err := tx.Layer(key); err != nil {
				return err
			} else if !l.Durable {
				d.nodes[metadata.LayerNode(key)] = struct{}{}
			}
		}
		for _, key := range tx.Keys(metadata.KindRootfs, "", -1) {
			if r, err := tx.Rootfs(digest.Digest(key)); err != nil {
				return err
			} else if !r.Durable {
				d.nodes[metadata.RootfsNode(r.Manifest)] = struct{}{}
			}
		}
		return nil
	})
}

// Has reports whether a node is in doubt.
func (d *Set) Has(n metadata.Node) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.nodes[n]
	return ok
}

// Add begins to doubt nodes.
func (d *Set) Add(nodes ...metadata.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		d.nodes[n] = struct{}{}
	}
}

// Remove ends the doubt about a node.
func (d *Set) Remove(n metadata.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.nodes, n)
}

// All lists the nodes that are in doubt, in no order.
func (d *Set) All() []metadata.Node {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.nodes))
}
