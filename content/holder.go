package content

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/metadata"
)

// HolderStore is the store as one holder sees it, a containerd content.Store. It lists and deletes
// only what the holder holds, and every blob that it finds becomes the holder's. Labels belong to
// the blob, so all of its holders see them.
type HolderStore struct {
	s      *Store
	holder metadata.Holder
}

var _ content.Store = (*HolderStore)(nil)

// pageSize is the number of records that one transaction of a walk reads.
const pageSize = 256

// Info returns the record of a blob, and holds the blob. It returns errdefs.ErrNotFound if the blob
// is not recorded, or if its file is missing or has another size.
func (hs *HolderStore) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	b, err := hs.hit(ctx, d)
	if err != nil {
		return content.Info{}, err
	}
	return info(b), nil
}

// noteHit reports to the observer that the holder came to hold a blob that was in the store. size
// is in bytes.
func (hs *HolderStore) noteHit(ctx context.Context, d digest.Digest, size int64) {
	e := observe.Event{Kind: observe.Hit, Subject: d.String(), Bytes: size}
	observe.Note(ctx, hs.s.opts.Observe, e, observe.Result{})
}

// ReaderAt reads a blob, and holds it. It uses only the digest of desc. Its errors are those of
// Info.
func (hs *HolderStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	b, err := hs.hit(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := hs.s.openBlob(b)
	if err != nil {
		return nil, err
	}
	return &readerAt{f, b.Size}, nil
}

// hit holds a blob that is in the store. It writes only if the holder does not hold the blob yet, and
// only then it keeps sweeps away: they do not delete what is held.
func (hs *HolderStore) hit(ctx context.Context, d digest.Digest) (b metadata.Blob, err error) {
	if err := validate(d); err != nil {
		return b, err
	}
	b, holds, err := hs.find(d)
	if err != nil || holds {
		return b, err
	}
	defer hs.s.dir.KeepSweepsAway()()
	if b, holds, err = hs.find(d); err != nil || holds {
		return b, err
	}
	err = hs.s.db.Batch(func(tx *metadata.Tx) (err error) {
		if b, err = tx.Blob(d); err != nil {
			return err // it was released since
		}
		return tx.Hold(hs.holder, metadata.BlobNode(d))
	})
	if err == nil {
		hs.noteHit(ctx, d, b.Size)
	}
	return b, err
}

// find returns the record of a blob whose file exists, and whether the holder holds it.
func (hs *HolderStore) find(d digest.Digest) (b metadata.Blob, holds bool, err error) {
	err = hs.s.db.ViewPending(func(tx *metadata.Tx) (err error) {
		b, err = tx.Blob(d)
		holds = tx.Holds(hs.holder, metadata.BlobNode(d))
		return err
	})
	if err == nil {
		err = hs.s.present(b)
	}
	return b, holds, err
}

// record records a blob whose bytes have their position, or keeps the record that exists, and holds
// the blob. existed reports whether there was a record.
func (hs *HolderStore) record(tx *metadata.Tx, d digest.Digest, size int64, labels map[string]string) (
	existed bool, err error,
) {
	b, err := tx.Blob(d)
	switch existed = err == nil; {
	case existed && b.Size == size:
	case existed: // the record has a wrong size
		b.Size = size
		err = tx.PutBlob(b)
	case errdefs.IsNotFound(err), errdefs.IsDataLoss(err):
		now := time.Now().UTC()
		b = metadata.Blob{Digest: d, Size: size, Created: now, Updated: now, Labels: labels}
		err = tx.PutBlob(b)
	}
	if err != nil {
		return existed, err
	}
	return existed, tx.Hold(hs.holder, metadata.BlobNode(d))
}

// Update sets labels of a blob, and holds the blob. fields are "labels" and "labels.<key>". A label
// without a value is removed. It returns errdefs.ErrInvalidArgument for other fields, and for
// labels above containerd's limit.
func (hs *HolderStore) Update(ctx context.Context, in content.Info, fields ...string) (content.Info, error) {
	if len(fields) == 0 {
		fields = []string{"labels"}
	}
	for _, f := range fields {
		if f != "labels" && !strings.HasPrefix(f, "labels.") {
			err := fmt.Errorf("field %q cannot be changed: %w", f, errdefs.ErrInvalidArgument)
			return content.Info{}, fmt.Errorf("blob %s: %w", in.Digest, err)
		}
	}
	if _, err := hs.hit(ctx, in.Digest); err != nil {
		return content.Info{}, err
	}
	var b metadata.Blob
	err := hs.s.db.Batch(func(tx *metadata.Tx) (err error) {
		if b, err = tx.Blob(in.Digest); err != nil {
			return err
		}
		b.Labels = maps.Clone(b.Labels)
		for _, f := range fields {
			if f == "labels" {
				b.Labels = maps.Clone(in.Labels)
				continue
			}
			if b.Labels == nil {
				b.Labels = map[string]string{}
			}
			key := strings.TrimPrefix(f, "labels.")
			b.Labels[key] = in.Labels[key]
		}
		if b.Labels, err = checkLabels(b.Labels); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		b.Updated = time.Now().UTC()
		return tx.PutBlob(b)
	})
	if err != nil {
		return content.Info{}, err
	}
	return info(b), nil
}

// checkLabels returns a copy of labels without those that have no value. It returns an error for
// labels that containerd does not accept.
func checkLabels(in map[string]string) (map[string]string, error) {
	var out map[string]string
	for k, val := range in {
		if val == "" {
			continue
		}
		if err := labels.Validate(k, val); err != nil {
			return nil, fmt.Errorf("labels: %w", err)
		}
		if out == nil {
			out = make(map[string]string, len(in))
		}
		out[k] = val
	}
	return out, nil
}

// Walk calls fn for each blob that the holder holds, ordered by digest. fn may call the store,
// Delete included.
func (hs *HolderStore) Walk(ctx context.Context, fn content.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return err
	}
	for after := ""; ; {
		var page []content.Info
		var keys []string
		err := hs.s.db.ViewPending(func(tx *metadata.Tx) error {
			keys = tx.Held(hs.holder, metadata.KindBlob, after, pageSize)
			for _, key := range keys {
				b, err := tx.Blob(digest.Digest(key))
				if err != nil {
					return err
				}
				page = append(page, info(b))
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, i := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !filter.Match(content.AdaptInfo(i)) {
				continue
			}
			if err := fn(i); err != nil {
				return err
			}
		}
		if len(keys) < pageSize {
			return nil
		}
		after = keys[len(keys)-1]
	}
}

// Delete releases the hold of the holder. The bytes stay for other holders, or until Sweep. It
// returns errdefs.ErrNotFound if the holder does not hold the blob.
//
// The release is durable only a moment later (docs/adr/0012): containerd's collector deletes
// hundreds of blobs under a lock, and must not wait for the disk each time.
func (hs *HolderStore) Delete(_ context.Context, d digest.Digest) error {
	if err := validate(d); err != nil {
		return err
	}
	var last bool
	released, err := hs.s.db.UpdateDeferred(func(tx *metadata.Tx) error {
		if err := tx.Release(hs.holder, metadata.BlobNode(d)); err != nil {
			return err
		}
		_, err := tx.Blob(d)
		last = errdefs.IsNotFound(err)
		return nil
	})
	if err != nil {
		return err
	}
	hs.s.wg.Go(func() {
		if err := released(); err != nil {
			log.L.WithError(err).WithField("digest", d).Warn("delete: the blob is still held")
		} else if last && hs.s.opts.OnGarbage != nil {
			hs.s.opts.OnGarbage(d)
		}
	})
	return nil
}

func info(b metadata.Blob) content.Info {
	return content.Info{
		Digest: b.Digest, Size: b.Size, CreatedAt: b.Created, UpdatedAt: b.Updated,
		Labels: maps.Clone(b.Labels),
	}
}
