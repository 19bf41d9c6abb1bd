// Package replaced keeps the directories that a repair has replaced for as long as somebody may still use them.
//
// It owns the records of layers with keys of the form "replaced/<name of a directory in layers/>". Such a record has no
// diff ID that anybody asks for, and is never served, compared or repaired.
//
// Its invariant: a directory that a container may have mounted has a record until the last such container's snapshot is
// gone, and a directory that this process may be reading is not deleted before the reading ends.
//
// The surprising rule: nobody looks at mount tables. containerd may have asked for mounts and not have made them yet,
// so every active snapshot and every view that stood on the old directory when it was replaced holds that record, as it
// holds its layers. The transaction that removes the last of them deletes the record, and the next sweep the directory.
package replaced

import (
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tank-snapshotter/tank/metadata"
)

const prefix = "replaced/"

// Is reports whether key is that of a replaced directory.
func Is(key string) bool { return strings.HasPrefix(key, prefix) }

// Keep records the directory of old, which is the record of a layer or fix-up that now gets another directory, if a
// container may be using it. It reports whether it did. Snapshots that are recorded later must not use the directory.
func Keep(tx *metadata.Tx, old metadata.Layer) (kept bool, err error) {
	users, err := users(tx, old.Key)
	if err != nil || len(users) == 0 {
		return false, err
	}
	old.Key, old.Durable = prefix+old.Dir, true // durable: nothing compares it with its seal
	if err := tx.PutLayer(old); err != nil {
		return false, err
	}
	for _, key := range users {
		if err := tx.Hold(metadata.SnapshotHolder(key), metadata.LayerNode(old.Key)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// users lists the active snapshots and views that stand on a layer or fix-up.
func users(tx *metadata.Tx, layer string) (users []string, err error) {
	seen := map[string]bool{}
	var visit func(key string) error
	visit = func(key string) error {
		if seen[key] {
			return nil
		}
		seen[key] = true
		sn, err := tx.Snapshot(key)
		if err != nil {
			return err
		}
		if sn.Kind != metadata.Committed {
			users = append(users, key)
			return nil
		}
		for _, child := range tx.Children(key, -1) {
			if err := visit(child); err != nil {
				return err
			}
		}
		return nil
	}
	for _, h := range tx.Holders(metadata.LayerNode(layer)) {
		if kind, key := h.Split(); kind == metadata.HolderSnapshot {
			if err := visit(key); err != nil {
				return nil, err
			}
		}
	}
	return users, nil
}

// Readers knows who reads directories of layers in this process, and how many layers have got new ones. The zero
// value is ready to use.
type Readers struct {
	swaps atomic.Uint64

	mu      sync.Mutex // guards the fields below; a leaf of the lock order
	next    uint64
	reading map[uint64]bool // by the number that Begin gave
	waiting []waiting       // oldest first
}

// waiting is a directory that is deleted when every reading with a number up to since has ended.
type waiting struct {
	path  string
	since uint64
	drop  func(path string)
}

// Begin is called before a reader looks up the records of layers that it is going to read, and end when it has read
// their directories. Until then none of them is deleted because of a repair.
func (r *Readers) Begin() (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reading == nil {
		r.reading = map[uint64]bool{}
	}
	r.next++
	n := r.next
	r.reading[n] = true
	return func() {
		for _, w := range r.ended(n) {
			w.drop(w.path)
		}
	}
}

// ended removes a reading, and returns what no remaining reading needs.
func (r *Readers) ended(n uint64) (free []waiting) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reading, n)
	r.waiting = slices.DeleteFunc(r.waiting, func(w waiting) bool {
		for n := range r.reading {
			if n <= w.since {
				return false
			}
		}
		free = append(free, w)
		return true
	})
	return free
}

// Drop calls drop with a path when every reading that has begun has ended: at once if there is none.
func (r *Readers) Drop(path string, drop func(path string)) {
	r.mu.Lock()
	if len(r.reading) > 0 {
		r.waiting = append(r.waiting, waiting{path, r.next, drop})
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	drop(path)
}

// Swap counts a layer that gets a new directory. It is called in the transaction that records that.
func (r *Readers) Swap() { r.swaps.Add(1) }

// Swaps returns how many layers have got a new directory. If the number is the same before the stack of a snapshot is
// found out and after the snapshot was recorded, the directories in the stack stay until the snapshot is removed.
func (r *Readers) Swaps() uint64 { return r.swaps.Load() }

// Keep takes back a path that Drop has got, unless its drop was called already.
func (r *Readers) Keep(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = slices.DeleteFunc(r.waiting, func(w waiting) bool { return w.path == path })
}

// Waiting returns the last elements of the paths that Drop has got and that are still being read. A sweep leaves them
// alone.
func (r *Readers) Waiting() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]bool{}
	for _, w := range r.waiting {
		names[filepath.Base(w.path)] = true
	}
	return names
}
