package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// labelParentChainID comes with the Prepare of a layer that containerd unpacks without naming its parent ("rebase").
const labelParentChainID = "containerd.io/snapshot/parent-chain-id"

// walkPage is how many snapshots Walk reads in one transaction.
const walkPage = 100

// Snapshotter is a Store as one holder sees it: containerd's snapshots.Snapshotter.
type Snapshotter struct {
	s      *Store
	holder metadata.Holder
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// For returns the snapshots that holder holds.
func (s *Store) For(holder metadata.Holder) *Snapshotter { return &Snapshotter{s, holder} }

func (s *Store) snapshot(key string) (sn metadata.Snapshot, err error) {
	err = s.db.View(func(tx *metadata.Tx) error {
		sn, err = tx.Snapshot(key)
		return err
	})
	return sn, err
}

// held returns the record of a snapshot that the holder holds.
func (n *Snapshotter) held(tx *metadata.Tx, key string) (metadata.Snapshot, error) {
	if !tx.Holds(n.holder, metadata.SnapshotNode(key)) {
		return metadata.Snapshot{}, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
	}
	return tx.Snapshot(key)
}

func (n *Snapshotter) get(key string) (sn metadata.Snapshot, err error) {
	err = n.s.db.View(func(tx *metadata.Tx) error {
		sn, err = n.held(tx, key)
		return err
	})
	return sn, err
}

// Stat returns a snapshot's info; errdefs.ErrNotFound when the holder does not hold it.
func (n *Snapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	sn, err := n.get(key)
	return info(sn), err
}

func info(sn metadata.Snapshot) snapshots.Info {
	kinds := map[metadata.SnapshotKind]snapshots.Kind{
		metadata.Active: snapshots.KindActive, metadata.View: snapshots.KindView, metadata.Committed: snapshots.KindCommitted,
	}
	return snapshots.Info{
		Kind: kinds[sn.Kind], Name: sn.Key, Parent: sn.Parent, Labels: sn.Labels, Created: sn.Created, Updated: sn.Updated,
	}
}

// Update changes labels, those of the field paths or all; errdefs.ErrInvalidArgument for another field.
func (n *Snapshotter) Update(_ context.Context, in snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	var sn metadata.Snapshot
	err := n.s.db.Update(func(tx *metadata.Tx) (err error) {
		if sn, err = n.held(tx, in.Name); err != nil {
			return err
		}
		if sn.Labels, err = updatedLabels(sn.Labels, in.Labels, fieldpaths); err != nil {
			return fmt.Errorf("snapshot %s: %w", in.Name, err)
		}
		sn.Updated = time.Now().UTC()
		return tx.PutSnapshot(sn)
	})
	return info(sn), err
}

func updatedLabels(old, new map[string]string, fieldpaths []string) (map[string]string, error) {
	if len(fieldpaths) == 0 {
		return new, nil
	}
	labels := map[string]string{}
	for k, v := range old {
		labels[k] = v
	}
	for _, p := range fieldpaths {
		key, ok := strings.CutPrefix(p, "labels.")
		switch {
		case p == "labels":
			labels = new
		case !ok:
			return nil, fmt.Errorf("field %q can't be changed: %w", p, errdefs.ErrInvalidArgument)
		case new[key] == "":
			delete(labels, key)
		default:
			labels[key] = new[key]
		}
	}
	return labels, nil
}

// Usage returns what a snapshot takes on disk without its parents: from the record once it is committed.
func (n *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	sn, err := n.get(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if sn.Kind == metadata.Active && sn.Layer == "" {
		return n.s.du(ctx, sn)
	}
	return snapshots.Usage{Size: sn.Size, Inodes: sn.Inodes}, nil
}

func (s *Store) du(ctx context.Context, sn metadata.Snapshot) (snapshots.Usage, error) {
	u, err := fs.DiskUsage(ctx, s.path("snapshots", sn.Dir, "fs"))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("snapshot %s: usage: %w", sn.Key, err)
	}
	return snapshots.Usage(u), nil
}

// Mounts returns the mounts of an active snapshot or a view.
func (n *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	sn, err := n.get(key)
	if err != nil {
		return nil, err
	}
	if sn.Kind == metadata.Committed {
		return nil, fmt.Errorf("snapshot %s: committed, has no mounts: %w", key, errdefs.ErrFailedPrecondition)
	}
	st, err := n.s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	return n.s.mounts(ctx, sn, st)
}

// Prepare makes an active snapshot above parent. For an extraction (a label names the target) of a layer that is known
// while its blob is not here, it answers with a read-only mount, which containerd commits without fetching or applying
// anything, or with errdefs.ErrAlreadyExists after it committed the target itself.
func (n *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	if target := labels[snapshots.LabelSnapshotRef]; target != "" {
		m, done, err := n.prepareKnown(ctx, key, parent, target, labels)
		if err != nil || done {
			return m, err
		}
	}
	return n.create(ctx, metadata.Snapshot{Key: key, Kind: metadata.Active, Parent: parent, Labels: labels})
}

// View makes a read-only snapshot of parent.
func (n *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, err
	}
	return n.create(ctx, metadata.Snapshot{Key: key, Kind: metadata.View, Parent: parent, Labels: labels})
}

func labelsOf(opts []snapshots.Opt) (map[string]string, error) {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return nil, err
		}
	}
	return base.Labels, nil
}

// create makes the snapshot's directory, then its record.
func (n *Snapshotter) create(ctx context.Context, sn metadata.Snapshot) ([]mount.Mount, error) {
	if err := n.checkNew(sn.Key, sn.Parent); err != nil {
		return nil, err
	}
	st, err := n.s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	staged := n.s.stage("snapshot")
	if sn.Kind == metadata.Active || len(st.dirs) == 0 {
		if err := makeUpper(staged, &st.root); err != nil {
			return nil, errors.Join(fmt.Errorf("snapshot %s: %w", sn.Key, err), n.s.trash(staged))
		}
	} else {
		staged = ""
	}
	if sn, err = n.put(sn, staged); err != nil {
		if staged != "" {
			err = errors.Join(err, n.s.trash(staged))
		}
		return nil, err
	}
	if sn, err = n.s.ensureViewRoot(sn, st); err != nil {
		return nil, err
	}
	return n.s.mounts(ctx, sn, st)
}

// checkNew refuses early what the transaction would refuse, before any directory is made.
func (n *Snapshotter) checkNew(key, parent string) error {
	return n.s.db.View(func(tx *metadata.Tx) error {
		if _, err := tx.Snapshot(key); err == nil {
			return fmt.Errorf("snapshot %s: %w", key, errdefs.ErrAlreadyExists)
		}
		return n.checkParent(tx, parent)
	})
}

func (n *Snapshotter) checkParent(tx *metadata.Tx, parent string) error {
	if parent == "" {
		return nil
	}
	p, err := n.held(tx, parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if p.Kind != metadata.Committed {
		return fmt.Errorf("snapshot %s: parent is not committed: %w", parent, errdefs.ErrInvalidArgument)
	}
	return nil
}

// makeUpper makes fs and work; fs, and with it the root directory that a container sees, gets the parent's attributes.
func makeUpper(dir string, root *unpack.Entry) error {
	fs := filepath.Join(dir, "fs")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(fs, 0o755), os.Mkdir(filepath.Join(dir, "work"), 0o711)); err != nil {
		return err
	}
	f, err := os.Open(fs)
	if err != nil {
		return err
	}
	defer f.Close()
	return unpack.SetAttrsOf(f, root)
}

// put records a new snapshot; its directory is moved into place inside the transaction, before the record is durable.
func (n *Snapshotter) put(sn metadata.Snapshot, staged string) (metadata.Snapshot, error) {
	n.s.gate.RLock()
	defer n.s.gate.RUnlock()
	sn.Created = time.Now().UTC()
	sn.Updated = sn.Created
	err := n.s.db.Update(func(tx *metadata.Tx) error {
		if _, err := tx.Snapshot(sn.Key); err == nil {
			return fmt.Errorf("snapshot %s: %w", sn.Key, errdefs.ErrAlreadyExists)
		}
		if err := n.checkParent(tx, sn.Parent); err != nil {
			return err
		}
		if staged != "" {
			id, err := tx.NextID()
			if err != nil {
				return err
			}
			sn.Dir = strconv.FormatUint(id, 10)
			if err := os.Rename(staged, n.s.path("snapshots", sn.Dir)); err != nil {
				return err
			}
		}
		if err := tx.PutSnapshot(sn); err != nil {
			return err
		}
		return tx.Hold(n.holder, metadata.SnapshotNode(sn.Key))
	})
	if err != nil {
		if sn.Dir != "" {
			err = errors.Join(err, n.s.trash(n.s.path("snapshots", sn.Dir)))
		}
		return sn, err
	}
	n.s.own(sn)
	return sn, nil
}

// own remembers which snapshot a directory belongs to.
func (s *Store) own(sn metadata.Snapshot) {
	if sn.Dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[sn.Dir] = sn.Key
}

// ensureViewRoot makes the directory that a view has on top, if it needs one.
func (s *Store) ensureViewRoot(sn metadata.Snapshot, st *stack) (metadata.Snapshot, error) {
	if sn.Kind != metadata.View || len(st.dirs) == 0 {
		return sn, nil
	}
	key := st.viewRoot()
	if key == "" {
		return sn, nil
	}
	defer s.locks.lock(key)()
	staged, made := "", metadata.Layer{}
	if _, err := s.layer(key); err != nil {
		if staged, made, err = s.buildTree(newTree([]unpack.Entry{st.root}), nil); err != nil {
			return sn, fmt.Errorf("snapshot %s: root directory: %w", sn.Key, err)
		}
	}
	made.Key = key
	return s.recordFixup(sn.Key, key, staged, made, func(sn *metadata.Snapshot) { sn.Root = key })
}

// Commit turns the active snapshot key into the committed snapshot name: one record, and no directory moves. With a
// parent among opts a snapshot that was prepared without one gets it ("rebase").
func (n *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	sn, err := n.get(key)
	if err != nil {
		return err
	}
	var usage snapshots.Usage
	if sn.Kind == metadata.Active && sn.Layer == "" {
		if usage, err = n.s.du(ctx, sn); err != nil {
			return err
		}
	}
	var committed metadata.Snapshot
	left := ""
	err = n.s.db.Update(func(tx *metadata.Tx) error {
		if sn, err = n.held(tx, key); err != nil {
			return err
		}
		committed, left, err = n.committed(tx, sn, name, base, usage)
		if err != nil {
			return err
		}
		return tx.RenameSnapshot(key, committed)
	})
	if err != nil {
		return err
	}
	n.s.own(committed)
	if left != "" {
		err = n.s.disown(left)
	}
	if committed.Layer != "" && committed.Fixup == "" {
		n.s.background("fix-up", func(ctx context.Context) error {
			_, err := n.s.stack(ctx, committed.Key)
			if errdefs.IsNotFound(err) {
				return nil // removed meanwhile
			}
			return err
		})
	}
	n.s.settleSoon()
	return err
}

// committed is the record that a commit writes; left is the directory that it no longer needs.
func (n *Snapshotter) committed(tx *metadata.Tx, sn metadata.Snapshot, name string, base snapshots.Info, usage snapshots.Usage,
) (c metadata.Snapshot, left string, err error) {
	if sn.Kind != metadata.Active {
		return c, "", fmt.Errorf("snapshot %s: not active: %w", sn.Key, errdefs.ErrFailedPrecondition)
	}
	c = sn
	if base.Parent != "" && c.Parent != base.Parent {
		if c.Parent != "" {
			return c, "", fmt.Errorf("snapshot %s: has another parent: %w", sn.Key, errdefs.ErrInvalidArgument)
		}
		c.Parent = base.Parent
		if err := n.checkParent(tx, c.Parent); err != nil {
			return c, "", err
		}
	}
	c.Key, c.Kind, c.Labels = name, metadata.Committed, base.Labels
	c.Created = time.Now().UTC()
	c.Updated = c.Created
	c.Size, c.Inodes = usage.Size, usage.Inodes
	if c.Layer == "" {
		return c, "", nil
	}
	rec, err := tx.Layer(c.Layer)
	if err != nil {
		return c, "", err
	}
	c.Size, c.Inodes = rec.Size, rec.Inodes
	if !rec.Needs {
		c.Fixup = metadata.NoFixup
	}
	left, c.Dir = c.Dir, ""
	return c, left, nil
}

// disown deletes a snapshot's directory, whose record no longer names it.
func (s *Store) disown(dir string) error {
	s.mu.Lock()
	delete(s.dirs, dir)
	s.mu.Unlock()
	return s.trash(s.path("snapshots", dir))
}

// Remove ends the holder's hold of a snapshot; errdefs.ErrFailedPrecondition while it has children. What it wrote, and
// what only it stood on, is moved aside at once and deleted in the background.
func (n *Snapshotter) Remove(_ context.Context, key string) error {
	var sn metadata.Snapshot
	var layers []metadata.Layer
	err := n.s.db.Update(func(tx *metadata.Tx) (err error) {
		if sn, err = n.held(tx, key); err != nil {
			return err
		}
		for _, l := range tx.Held(metadata.SnapshotHolder(key), metadata.KindLayer, "", -1) {
			rec, err := tx.Layer(l)
			if err != nil {
				return err
			}
			layers = append(layers, rec)
		}
		return tx.Release(n.holder, metadata.SnapshotNode(key))
	})
	if err != nil {
		return err
	}
	if sn.Dir != "" {
		err = n.s.disown(sn.Dir)
	}
	return errors.Join(err, n.s.trashLayers(layers))
}

// trashLayers deletes those of the layers that have no record any more.
func (s *Store) trashLayers(layers []metadata.Layer) error {
	var gone []string
	err := s.db.View(func(tx *metadata.Tx) error {
		for _, l := range layers {
			if now, err := tx.Layer(l.Key); err != nil || now.Dir != l.Dir {
				gone = append(gone, s.path("layers", l.Dir))
			}
		}
		return nil
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return s.trash(gone...)
}

// Walk calls fn for the holder's snapshots that match one of the filters, containerd's. fn may call the Snapshotter.
func (n *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	for after := ""; ; {
		var page []metadata.Snapshot
		err := n.s.db.View(func(tx *metadata.Tx) error {
			for _, key := range tx.Held(n.holder, metadata.KindSnapshot, after, walkPage) {
				sn, err := tx.Snapshot(key)
				if err != nil {
					return err
				}
				page = append(page, sn)
			}
			return nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].Key
		for _, sn := range page {
			if i := info(sn); filter.Match(adapt(i)) {
				if err := fn(ctx, i); err != nil {
					return err
				}
			}
		}
	}
}

// adapt lets containerd's filters see the fields that its own snapshotters show: kind, name, parent, labels.
func adapt(i snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(fieldpath []string) (string, bool) {
		if len(fieldpath) == 0 {
			return "", false
		}
		switch fieldpath[0] {
		case "kind":
			return strings.ToLower(i.Kind.String()), true
		case "name":
			return i.Name, true
		case "parent":
			return i.Parent, true
		case "labels":
			v, ok := i.Labels[strings.Join(fieldpath[1:], ".")]
			return v, ok
		}
		return "", false
	})
}

// Cleanup frees what removals left. containerd calls it after a collection.
func (n *Snapshotter) Cleanup(ctx context.Context) error {
	_, err := n.s.Sweep(ctx)
	return err
}

// Close does nothing: the store belongs to who opened it.
func (n *Snapshotter) Close() error { return nil }

// digestOf is a digest from an untrusted label, "" when it is none.
func digestOf(s string) digest.Digest {
	d, err := digest.Parse(s)
	if err != nil {
		return ""
	}
	return d
}
