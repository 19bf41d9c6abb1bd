package content

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/errclass"
)

// spare is how many bytes an ingest leaves free when it is longer than announced or of unknown
// length, for the database and for ingests of known length.
const spare = 64 << 20

// CheckSpace returns errdefs.ErrResourceExhausted unless the disk has room for the bytes of these
// blobs that must be downloaded. Blobs in the store and bytes that earlier downloads of the same
// holder left do not count, unless all is true: then every blob is downloaded from its beginning.
// If the disk is too full, CheckSpace calls Options.OnShortage once to free space.
func (hs *HolderStore) CheckSpace(ctx context.Context, blobs []ocispec.Descriptor, all bool) error {
	missing, err := hs.missingBytes(ctx, blobs, all)
	if err != nil || missing == 0 {
		return err
	}
	return hs.s.withSpace(ctx, func() error {
		for _, pool := range []string{"ingest", "blobs"} { // these may lie on different disks
			if err := hs.s.checkPool(pool, missing); err != nil {
				return errclass.Ensure(fmt.Errorf("content: %w", err))
			}
		}
		return nil
	})
}

// checkPool returns errdefs.ErrResourceExhausted unless the file system of a directory of the root
// has room for so many bytes. It reserves nothing: each writer gets a promise of its own.
func (s *Store) checkPool(pool string, bytes int64) error {
	dir, err := os.Open(filepath.Join(s.root, pool))
	if err != nil {
		return err
	}
	defer dir.Close()
	return s.space.Fits(dir, bytes)
}

// missingBytes returns how many bytes of these blobs must be downloaded.
func (hs *HolderStore) missingBytes(ctx context.Context, blobs []ocispec.Descriptor, all bool) (int64, error) {
	have := map[digest.Digest]int64{} // bytes that need not be downloaded
	if !all {
		ingests, err := hs.ListStatuses(ctx)
		if err != nil {
			return 0, err
		}
		for _, st := range ingests {
			have[digestOf(st.Ref)] = st.Offset
		}
	}
	missing := int64(0)
	for _, b := range blobs {
		if _, ok := hs.s.Size(b.Digest); ok && !all {
			continue
		}
		due := max(b.Size-have[b.Digest], 0)
		if due > math.MaxInt64-missing {
			err := fmt.Errorf("content: blobs of more than %d bytes: %w",
				int64(math.MaxInt64), errdefs.ErrResourceExhausted)
			return 0, cause.Mark(err, cause.DiskFull, "")
		}
		missing += due
		have[b.Digest] = b.Size // a blob that is listed twice counts once
	}
	return missing, nil
}

// withSpace calls fn. If the disk is too full for it and Options.OnShortage has freed space, it
// calls fn once more.
func (s *Store) withSpace(ctx context.Context, fn func() error) error {
	err := fn()
	if errdefs.IsResourceExhausted(err) && s.opts.OnShortage != nil && s.opts.OnShortage(ctx) {
		err = fn()
	}
	return err
}

// promise gets a promise of the bytes that are announced and not written yet. It is called before
// other goroutines see w.
func (w *writer) promise(ctx context.Context) error {
	return w.hs.s.withSpace(ctx, func() (err error) {
		w.due, err = w.hs.s.space.Promise(w.f, max(w.total-w.offset, 0))
		return err
	})
}

// giveUp deletes the ingest of a writer that can't continue, so that its bytes do not stay on a
// full disk. It returns reason. Called with mu held, or before other goroutines can see w.
func (w *writer) giveUp(reason error) error {
	w.broken = reason
	w.due.End()
	if err := w.hs.s.abort(w.stored); err != nil {
		return fmt.Errorf("%w (the bytes that were written could not be deleted: %v)", reason, err)
	}
	return reason
}
