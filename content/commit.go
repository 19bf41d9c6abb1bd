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
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/follow"
)

// Commit verifies and records what was written, holds it, and ends the writer. size and expected may be zero when
// unknown. It returns errdefs.ErrFailedPrecondition when the bytes have another size or digest: they stay, and the ref
// can be opened again. It returns errdefs.ErrAlreadyExists when the blob was in the store before; the blob is then held
// as well, and the verified bytes replace the old ones, which may be damaged.
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.commit(ctx, size, expected, opts)
	if err != nil && !errdefs.IsAlreadyExists(err) { // which names the blob
		return fmt.Errorf("ingest %.200q: %w", w.ref, err)
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
	defer func() { _ = w.close(state, cause) }() // the bytes are on disk by then, or the error is known
	if err := ctx.Err(); err != nil {
		return err
	}
	d, labels, err := w.verify(ctx, size, expected, opts)
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
	if state = follow.Committed; w.in().Digest() != d {
		state, cause = follow.Ended, "committed as "+d.String()
	}
	w.hs.s.ingests.Committed(d, w.in())
	if existed {
		return fmt.Errorf("blob %s: %w", d, errdefs.ErrAlreadyExists)
	}
	return nil
}

// verify returns the digest that the bytes have, if that and their number are as expected.
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
		if _, err := io.Copy(h.Hash(), ctxReader{ctx.Err, io.NewSectionReader(w.f, 0, w.offset)}); err != nil {
			return "", nil, err
		}
		d = h.Digest()
	}
	if expected != "" && expected != d {
		return "", nil, fmt.Errorf("digest is %s instead of %s: %w", d, expected, errdefs.ErrFailedPrecondition)
	}
	return d, labels, nil
}

// publish gives the verified bytes their name, then records and holds them.
func (w *writer) publish(d digest.Digest, labels map[string]string) (existed bool, err error) {
	s := w.hs.s
	target := s.Path(d)
	if err := s.makeDir(filepath.Dir(target)); err != nil {
		return false, err
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := w.same(); err != nil {
		return false, err
	}
	if fi, err := os.Lstat(target); err == nil && fi.IsDir() {
		if err := s.discard(target); err != nil { // nothing of ours, but in the way
			return false, err
		}
	}
	if err := w.f.Chmod(0o444); err != nil {
		return false, err
	}
	if err := w.place(target); err != nil {
		_ = w.f.Chmod(0o600) // or its owner could not resume it
		if w.aborted.Load() {
			err = errdefs.ErrAborted
		}
		return false, err
	}
	if err := s.fs.SyncDir(filepath.Dir(target)); err != nil {
		return false, err
	}
	existed, err = w.hs.record(d, w.offset, labels)
	if err != nil {
		return false, err
	}
	// What is left of the ingest goes before the ref is given up. An Abort may have been faster.
	if err := s.discard(s.ingestDir(w.stored)); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.L.WithError(err).WithField("digest", d).Warn("ingest of a committed blob is left to the next sweep")
	}
	return existed, nil
}

// place gives the data file its name below blobs/. If blobs/ is on another file system or below another project quota,
// a synced copy gets the name. The copied bytes are hashed once more, because they were read back from the disk.
func (w *writer) place(target string) error {
	err := w.hs.s.fs.Rename(w.data(), target)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	staged := w.hs.s.stagedBeside(target)
	err = w.copyTo(staged, digest.Algorithm(filepath.Base(filepath.Dir(target))), filepath.Base(target))
	if err == nil {
		err = w.hs.s.fs.Rename(staged, target)
	}
	if err != nil {
		_ = w.hs.s.fs.Remove(staged) // if this fails, the next sweep removes it
	}
	return err
}

func (w *writer) copyTo(path string, alg digest.Algorithm, encoded string) error {
	f, err := w.hs.s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	h := alg.Hash()
	_, err = io.CopyBuffer(io.MultiWriter(f, h), io.NewSectionReader(w.f, 0, w.offset), make([]byte, piece))
	if err == nil && digest.NewDigestFromBytes(alg, h.Sum(nil)).Encoded() != encoded {
		err = fmt.Errorf("data changed while it was copied: %w", errdefs.ErrDataLoss)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Chmod(0o444), f.Close())
}

// same returns an error unless the data file is still the one that was written, of that size.
func (w *writer) same() error {
	fi, err := os.Lstat(w.data())
	if w.aborted.Load() {
		return errdefs.ErrAborted
	}
	if err != nil {
		return err
	}
	own, err := w.f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(fi, own) || fi.Size() != w.offset {
		return fmt.Errorf("data was replaced: %w", errdefs.ErrDataLoss)
	}
	return nil
}
