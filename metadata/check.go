package metadata

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata/internal/boltfile"
)

// Check reports every broken invariant of the file: pages, records without holders, holds without records, indexes that
// disagree, images and snapshots whose closure has gaps.
func (db *DB) Check(report func(Fault)) error { return db.check(report, db.checkPages) }

// Sound returns errdefs.ErrDataLoss if Check finds a fault in the records. Open has compared the pages.
func (db *DB) Sound() error {
	var first error
	err := db.check(func(f Fault) { first = cmp.Or(first, error(f)) }, nil)
	return cmp.Or(err, first)
}

// check reports what is wrong with the pages, unless that is nil, and with the records.
func (db *DB) check(report func(Fault), pages func(boltfile.Report) error) (err error) {
	damaged := func(err error) { report(Fault{Damage: DamagedRecords, Mend: MendRecords, Err: err}) }
	defer func() { // pages that are too damaged to be walked are a fault as well
		if errdefs.IsDataLoss(err) {
			damaged(err)
			err = nil
		}
	}()
	defer recoverDamage(debug.SetPanicOnFault(true), &err)
	fault := func(format string, args ...any) {
		damaged(fmt.Errorf("metadata: "+format+": %w", append(args, errdefs.ErrDataLoss)...))
	}
	if pages != nil {
		if err := pages(fault); err != nil {
			return err
		}
	}
	db.flush(nil)
	return db.bolt.View(func(btx *bolt.Tx) error {
		tx := &Tx{entries: entries{bolt: btx}}
		checkNodes(tx, fault)
		checkHolds(tx, fault)
		checkImages(tx, fault)
		checkSnapshots(tx, fault)
		_, berr := Bindings(tx)
		if _, err := tx.Pulls(); cmp.Or(berr, err) != nil {
			fault("%v", cmp.Or(berr, err))
		}
		return nil
	})
}

// checkPages holds the write transaction, so that no page is written meanwhile.
func (db *DB) checkPages(fault boltfile.Report) error {
	db.pending.mu.Lock()
	defer db.pending.mu.Unlock()
	db.commitBatch()
	btx, err := db.bolt.Begin(!db.bolt.IsReadOnly())
	if err != nil {
		return fmt.Errorf("metadata: check: %w", err)
	}
	defer func() { _ = btx.Rollback() }() // nothing was changed
	f, err := regular.Open(db.bolt.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := boltfile.Check(f, fi.Size(), true, buckets, fault); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return nil
}

func checkNodes(tx *Tx, fault boltfile.Report) {
	for _, k := range []Kind{KindBlob, KindLayer, KindRootfs, KindSnapshot} {
		for _, key := range tx.Keys(k, "", -1) {
			if len(tx.Holders(Node{k, key})) == 0 {
				fault("%s %s: record without a holder", k, key)
			}
			var err error
			switch k {
			case KindBlob:
				err = tx.get(bucketBlobs, "blob", key, &Blob{})
			case KindLayer:
				_, err = tx.Layer(key)
			case KindRootfs:
				err = tx.get(bucketRootfs, "rootfs", key, &Rootfs{})
			case KindSnapshot:
				_, err = tx.Snapshot(key)
			}
			if err != nil {
				fault("%v", err)
			}
		}
	}
}

func checkHolds(tx *Tx, fault boltfile.Report) {
	for _, key := range tx.page(bucketHolds, nil, "", -1) {
		p := strings.SplitN(key, "\x00", 3)
		if len(p) != 3 {
			fault("hold %q: malformed", key)
			continue
		}
		n := Node{Kind(p[1]), p[2]}
		if nodeBuckets[n.Kind] == nil || !tx.has(n) {
			fault("%s %s: record is lost, held by %s", n.Kind, n.Key, p[0])
		}
		if !exists(tx.bolt.Bucket(bucketHeld).Cursor(), join(p[1], p[2], p[0])) {
			fault("%s %s: hold of %s is not in the index by node", p[1], p[2], p[0])
		}
		checkHolder(tx, Holder(p[0]), fault)
	}
	for _, key := range tx.page(bucketHeld, nil, "", -1) {
		p := strings.Split(key, "\x00")
		if len(p) != 3 || !exists(tx.bolt.Bucket(bucketHolds).Cursor(), join(p[2], p[0], p[1])) {
			fault("held %q: not in the index by holder", key)
		}
	}
}

// checkHolder reports a holder whose own record is lost.
func checkHolder(tx *Tx, h Holder, fault boltfile.Report) {
	kind, name := h.Split()
	var bucket []byte
	switch kind {
	case HolderImage:
		bucket = bucketImages
	case HolderSnapshot:
		bucket = bucketSnapshots
	case HolderPull:
		bucket = bucketPulls
	default:
		return
	}
	if tx.bolt.Bucket(bucket).Get([]byte(name)) == nil {
		fault("holder %s: record is lost", h)
	}
}

func checkImages(tx *Tx, fault boltfile.Report) {
	images, err := tx.Images("", -1)
	if err != nil {
		fault("%v", err)
	}
	for _, i := range images {
		h := ImageHolder(i.Ref)
		want := []Node{BlobNode(i.Target.Digest)}
		for _, p := range i.Platforms {
			want = append(want, BlobNode(p.Manifest.Digest), BlobNode(p.Config.Digest))
			for _, l := range p.Layers {
				want = append(want, BlobNode(l.Digest))
			}
			if p.Rootfs {
				want = append(want, RootfsNode(p.Manifest.Digest))
			}
		}
		for _, n := range want {
			if !tx.Holds(h, n) {
				fault("image %s: does not hold %s %s", i.Ref, n.Kind, n.Key)
			}
		}
	}
}

func checkSnapshots(tx *Tx, fault boltfile.Report) {
	for _, key := range tx.Keys(KindSnapshot, "", -1) {
		s, err := tx.Snapshot(key)
		if err != nil {
			continue // reported by checkNodes
		}
		if s.Parent != "" && !tx.has(SnapshotNode(s.Parent)) {
			fault("snapshot %s: parent %s is lost", key, s.Parent)
		}
		if !exists(tx.bolt.Bucket(bucketChildren).Cursor(), join(s.Parent, key)) {
			fault("snapshot %s: not in the index of %q's children", key, s.Parent)
		}
		for _, l := range []string{s.Layer, s.Fixup, s.ViewRoot} {
			if l != "" && l != NoFixup && !tx.Holds(SnapshotHolder(key), LayerNode(l)) {
				fault("snapshot %s: does not hold layer %s", key, l)
			}
		}
	}
}
