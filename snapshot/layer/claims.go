package layer

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/durable"
)

// isKnown reports whether the layer is here and was verified for its blob, because any config may claim any diff ID.
func isKnown(tx *metadata.Tx, l Pair) bool {
	d := tx.Verified(l.Blob.Digest)
	if d == "" || (l.DiffID != "" && d != l.DiffID) {
		return false
	}
	_, err := tx.Layer(metadata.LayerKey(d))
	return err == nil
}

// Unpack unpacks a layer, unless it is known, and lets holder hold it. If the blob still arrives, Unpack waits for it.
// It returns errdefs.ErrFailedPrecondition if the blob does not have the diff ID that l claims for it, and
// errdefs.ErrNotFound or errdefs.ErrUnavailable if the blob, or a part of it, is missing.
func (s *Store) Unpack(ctx context.Context, holder metadata.Holder, l Pair) (metadata.Layer, error) {
	return s.Claim(ctx, l, func(tx *metadata.Tx, rec metadata.Layer) error {
		return tx.Hold(holder, metadata.LayerNode(rec.Key))
	})
}

// Claim is like Unpack. Instead of taking a hold, it calls hold in the transaction that records the layer. hold may be
// called again, with another record.
func (s *Store) Claim(ctx context.Context, l Pair,
	hold func(*metadata.Tx, metadata.Layer) error,
) (metadata.Layer, error) {
	for {
		if err := s.Fits([]Pair{l}); err != nil {
			return metadata.Layer{}, err
		}
		rec, ok, err := s.claimKnown(ctx, l, hold)
		if err != nil || ok {
			return rec, err
		}
		j, began := s.unpacks.start(ctx, l)
		_, here := s.blobs.Size(l.Blob.Digest)
		if here {
			j.once.Do(func() { close(j.here) })
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			return rec, fmt.Errorf("layer %s: %w", l.Blob.Digest, ctx.Err())
		}
		if errdefs.IsNotFound(j.err) && !began {
			continue // it was read for another caller, who may not see the blobs that this one sees
		}
		if j.err != nil && j.followed && here {
			continue // it followed a download that failed or had other bytes, and the blob came from elsewhere
		}
		if j.err != nil {
			return rec, j.err
		}
		if err := setVerified(s.db, j); err != nil {
			return rec, err
		}
		if l.DiffID != "" && l.DiffID != j.diffID {
			return rec, cause.Mark(fmt.Errorf("layer %s: diff ID is %s, the config claims %s: %w",
				l.Blob.Digest, j.diffID, l.DiffID, errdefs.ErrFailedPrecondition), cause.Document, "")
		}
		if s.unpacks.forgotten(j) {
			continue // another claimer has recorded it
		}
		rec, ok, err = s.place(j, hold)
		if err != nil || ok {
			return rec, err
		}
		// The blob was only hashed, because the layer was here. The layer is gone now, so the blob has to be extracted.
	}
}

// claimKnown calls hold for a layer that is known. It reports false if the layer is not.
func (s *Store) claimKnown(ctx context.Context, l Pair,
	hold func(*metadata.Tx, metadata.Layer) error,
) (rec metadata.Layer, ok bool, err error) {
	known := false
	err = s.db.ViewPending(func(tx *metadata.Tx) error {
		known = isKnown(tx, l)
		return nil
	})
	if err != nil || !known {
		return rec, false, err
	}
	err = s.db.Batch(func(tx *metadata.Tx) (err error) {
		d := tx.Verified(l.Blob.Digest)
		if rec, err = tx.Layer(metadata.LayerKey(d)); errdefs.IsNotFound(err) {
			ok = false
			return nil
		} else if err != nil {
			return err
		}
		ok = true
		return hold(tx, rec)
	})
	if err != nil || !ok {
		return rec, false, err
	}
	if rec, err = s.intact(ctx, rec); err != nil {
		return rec, false, err
	}
	s.Hit(ctx, rec, l.Blob.Size)
	return rec, true, nil
}

// setVerified records that the blob of a job has the diff ID that was computed.
func setVerified(db *metadata.DB, j *job) error {
	verified := false
	err := db.ViewPending(func(tx *metadata.Tx) error {
		verified = tx.Verified(j.pair.Blob.Digest) == j.diffID
		return nil
	})
	if err != nil || verified {
		return err
	}
	return db.Batch(func(tx *metadata.Tx) error { return tx.SetVerified(j.pair.Blob.Digest, j.diffID) })
}

// place gives the directory of a finished job its position and records it, unless a layer with the same
// diff ID is recorded already. It reports false if neither is possible, because the directory was given
// away and the layer is gone.
func (s *Store) place(j *job,
	hold func(*metadata.Tx, metadata.Layer) error,
) (rec metadata.Layer, ok bool, err error) {
	j.recording.Lock()
	defer j.recording.Unlock()
	defer s.unpacks.forget(j)
	used := false
	record := func(tx *metadata.Tx, dir string) (bool, error) {
		used = false
		var err error
		if rec, err = tx.Layer(metadata.LayerKey(j.diffID)); err == nil {
			ok = true
			return false, hold(tx, rec)
		}
		if ok = dir != ""; !ok {
			return false, nil // another claimer recorded the layer, which was removed since
		}
		used, rec = true, j.record
		rec.Dir = dir
		if err := tx.PutLayer(rec); err != nil {
			return false, err
		}
		return true, hold(tx, rec)
	}
	if !j.take() {
		err = s.db.Update(func(tx *metadata.Tx) error {
			_, err := record(tx, "")
			return err
		})
		return rec, ok && err == nil, err
	}
	err = s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: j.dir}, record)
	if err == nil && used {
		s.syncer.Add(metadata.LayerNode(rec.Key), durable.LayerVersion(rec))
	}
	return rec, ok && err == nil, err
}
