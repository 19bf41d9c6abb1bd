package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/follow"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Commit verifies the bytes that were written, records them as a blob, holds the blob, and ends the
// writer. size and expected may be zero if they are unknown. It returns
// errdefs.ErrFailedPrecondition if the bytes have another size or digest; they stay, and the ref
// can be opened again. If another process wrote the first of them, they are deleted instead, because
// a power cut may have damaged them. It returns errdefs.ErrAlreadyExists if the blob was in the store already;
// then the holder holds it, and the verified bytes replace the old ones, which may be damaged.
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.commit(ctx, size, expected, opts)
	if err != nil && !errdefs.IsAlreadyExists(err) { // that error names the blob
		return errclass.Ensure(fmt.Errorf("ingest %.200q: %w", w.ref, err))
	}
	return err
}

func (w *writer) commit(ctx context.Context, size int64, expected digest.Digest, opts []content.Opt) error {
	w.lockSummed(ctx.Done())
	defer w.mu.Unlock()
	if w.done {
		return fmt.Errorf("writer is closed: %w", errdefs.ErrFailedPrecondition)
	}
	state, cause := follow.Ended, "not committed"
	defer func() { _ = w.close(state, cause) }() // the data is synced, or an error is returned anyway
	if err := ctx.Err(); err != nil {
		return err
	}
	d, labels, err := w.verify(ctx, size, expected, opts)
	if w.foreign && errdefs.IsFailedPrecondition(err) {
		// The next download begins again. Otherwise it would resume the same bytes, for ever.
		return errors.Join(err, w.f.Truncate(0))
	}
	if err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	existed, err := w.publish(d, labels)
	if err != nil {
		return err
	}
	w.digest = d
	if state = follow.Committed; w.ingest().Digest() != d {
		state, cause = follow.Ended, "committed as "+d.String()
	}
	w.hs.s.ingests.Committed(d, w.ingest())
	if existed {
		return fmt.Errorf("blob %s: %w", d, errdefs.ErrAlreadyExists)
	}
	return nil
}

// verify returns the digest of the bytes and the labels to record. It returns an error if the
// digest or the number of bytes is not the expected one.
func (w *writer) verify(ctx context.Context, size int64, expected digest.Digest, opts []content.Opt) (
	digest.Digest, map[string]string, error,
) {
	switch {
	case w.broken != nil:
		return "", nil, w.broken
	case w.aborted.Load():
		return "", nil, errdefs.ErrAborted
	}
	var given content.Info
	for _, opt := range opts {
		if err := opt(&given); err != nil {
			return "", nil, err
		}
	}
	labels, err := checkLabels(given.Labels)
	if err != nil {
		return "", nil, err
	}
	d := w.sum.Load().digest()
	if expected != "" {
		if err := validate(expected); err != nil {
			return "", nil, err
		}
	}
	if size > 0 && size != w.offset {
		return "", nil, fmt.Errorf("%d bytes instead of %d: %w", w.offset, size, errdefs.ErrFailedPrecondition)
	}
	if expected != "" && expected.Algorithm() != d.Algorithm() {
		h := expected.Algorithm().Digester()
		if _, err := io.Copy(h.Hash(), ctxReader{watched(ctx), io.NewSectionReader(w.f, 0, w.offset)}); err != nil {
			return "", nil, err
		}
		d = h.Digest()
	}
	if expected != "" && expected != d {
		return "", nil, fmt.Errorf("digest is %s instead of %s: %w", d, expected, errdefs.ErrFailedPrecondition)
	}
	return d, labels, nil
}

// publish moves the data file to its position below blobs/, then records and holds the blob. If
// blobs/ is on another file system or has another project quota, publish places a copy instead.
func (w *writer) publish(d digest.Digest, labels map[string]string) (existed bool, err error) {
	s := w.hs.s
	if err := s.makeDir(filepath.Dir(s.Path(d))); err != nil {
		return false, err
	}
	if err := w.same(); err != nil {
		return false, err
	}
	if err := w.f.Chmod(0o444); err != nil {
		return false, err
	}
	placed := false
	err = s.dir.Place(rootdir.Entry{
		Kind: metadata.KindBlob, Name: filepath.Join(d.Algorithm().String(), d.Encoded()),
		Staged: w.data(), Durable: true,
		Copy: func(to string) error { return w.copyTo(to, d) },
	}, func(tx *metadata.Tx, _ string) (bool, error) {
		var err error
		placed = true
		existed, err = w.hs.record(tx, d, w.offset, labels)
		return true, err
	})
	if err != nil {
		if w.same() == nil {
			_ = w.f.Chmod(0o600) // so that a later writer can resume it
		}
		if w.aborted.Load() && !placed {
			err = errdefs.ErrAborted
		}
		return false, err
	}
	// Delete the rest of the ingest before another writer can get the ref. An Abort may have deleted
	// it already.
	if err := s.dir.Trash(s.ingestDir(w.stored)); err != nil {
		log.L.WithError(err).WithField("digest", d).Warn("commit: the next sweep deletes the rest of the ingest")
	}
	return existed, nil
}

// copyTo makes a synced copy of the data file. It hashes the bytes again while it reads them back
// from the disk.
func (w *writer) copyTo(path string, d digest.Digest) error {
	f, err := w.hs.s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	h := d.Algorithm().Hash()
	_, err = io.CopyBuffer(io.MultiWriter(f, h), io.NewSectionReader(w.f, 0, w.offset), make([]byte, piece))
	if err == nil && digest.NewDigestFromBytes(d.Algorithm(), h.Sum(nil)) != d {
		err = fmt.Errorf("the data file changed while it was copied: %w", errdefs.ErrDataLoss)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Chmod(0o444), f.Close())
}

// same returns an error unless the data file at its path is still the open file and has the size
// that was written.
func (w *writer) same() error {
	fi, err := os.Lstat(w.data())
	if w.aborted.Load() {
		return errdefs.ErrAborted
	}
	if err != nil {
		return err
	}
	open, err := w.f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(fi, open) || fi.Size() != w.offset {
		return fmt.Errorf("the data file was replaced: %w", errdefs.ErrDataLoss)
	}
	return nil
}
