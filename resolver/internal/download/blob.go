package download

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/descriptors"
)

// Blob downloads desc into the store unless it is there, and reports whether it did. A zero by is no deadline.
func (e *Downloader) Blob(ctx context.Context, desc ocispec.Descriptor, by time.Time) (fresh bool, err error) {
	for arrived := true; arrived; {
		if fresh, arrived, err = e.download(ctx, desc, by); err != nil {
			return false, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
	}
	return fresh, nil
}

// turn waits until desc may be downloaded, and downloads it. arrived reports that another download of it was faster, so
// that it is in the store.
func (e *Downloader) download(ctx context.Context, desc ocispec.Descriptor, by time.Time) (fresh, arrived bool, err error) {
	own, turn, done, err := e.inFlight.begin(ctx, desc.Digest, e.repo.Registry)
	if err != nil {
		return false, false, err
	}
	if e.opts.Refresh {
		own = ctx // a refresh must download every blob itself
	}
	defer func() { done(err == nil && !arrived) }()
	_, release, err := descriptors.Process.Take(own, descriptors.Download)
	if err != nil {
		if errors.Is(context.Cause(own), errDownloadedElsewhere) && ctx.Err() == nil {
			return false, true, nil
		}
		return false, false, err
	}
	defer release()
	d := &download{repo: e.repo, desc: desc, buffers: e.buffers, link: e.link, slot: turn, deadline: by}
	fresh, err = e.ingest(own, d)
	if errdefs.IsDataLoss(err) && own.Err() == nil {
		// Bytes of an older download, or badly joined ranges, or one host of several may be to blame. The bytes are gone now, so the registry
		// deserves one more chance: from the beginning, in one piece, and from another host than the last if there is one.
		next := 0
		if d.host+1 < len(e.repo.Hosts) {
			next = d.host + 1
		}
		fresh, err = e.ingest(own, &download{
			repo: e.repo, desc: desc, host: next, noRanges: true, otherEncoding: d.encoded.Load() && next == d.host, slot: turn, deadline: by,
		})
	}
	if err != nil && errors.Is(context.Cause(own), errDownloadedElsewhere) && ctx.Err() == nil {
		return false, true, nil
	}
	return fresh, false, err
}

// open opens the ingest of desc at its present end, under a ref that ends with the digest: by that the store recognises a layer in progress.
// Annotations of the manifest must not get into the ref.
//
// A refresh has a ref of its own, so that it begins with nothing, and keeps the digest from the descriptor: with it the store would answer
// that the blob is there. Commit, which is told the digest, then compares, and heals what the store has.
func (e *Downloader) open(ctx context.Context, desc ocispec.Descriptor) (content.Writer, string, error) {
	desc = Plain(desc)
	ref := remotes.MakeRefKey(ctx, desc)
	if e.opts.Refresh {
		ref = "refresh-" + ref
		desc = ocispec.Descriptor{MediaType: desc.MediaType, Size: desc.Size}
	}
	w, err := content.OpenWriter(ctx, e.store, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return nil, ref, err
	}
	if e.opts.Refresh {
		if err := w.Truncate(0); err != nil {
			w.Close()
			return nil, ref, err
		}
	}
	return w, ref, nil
}

// ingest runs one ingest to its commit, and says whether it was needed.
func (e *Downloader) ingest(ctx context.Context, d *download) (fresh bool, err error) {
	desc := d.desc
	w, ref, err := e.open(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		if err := e.sameSize(ctx, desc); err != nil {
			return false, err
		}
		e.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true, Cached: true})
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// A Write may wait for the hash of what an earlier download left.
	closed := context.AfterFunc(ctx, func() { w.Close() })
	defer func() {
		closed()
		w.Close()
		if err != nil && e.hopeless(ctx, err) {
			_ = e.store.Abort(context.WithoutCancel(ctx), ref) // the context may be over already
		}
	}()
	status, err := w.Status()
	if err != nil {
		return false, err
	}
	d.offset = status.Offset
	d.write = func(p []byte) error {
		if _, err := w.Write(p); err != nil {
			return err
		}
		if d.slot != nil {
			d.slot.bytes.Add(int64(len(p)))
		}
		e.progress(Event{Descriptor: desc, Offset: d.offset + int64(len(p))})
		return nil
	}
	e.progress(Event{Descriptor: desc, Offset: d.offset})
	err = d.run(ctx)
	if !closed() {
		return false, ctx.Err()
	}
	if err != nil {
		return false, err
	}
	if err := commit(ctx, w, desc); err != nil {
		return false, fmt.Errorf("from %s: %w", e.repo.Registry, err)
	}
	e.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true})
	return true, nil
}

// hopeless reports whether an ingest that failed with err is of no use to a later fetch: the disk is full, its bytes
// are not the beginning of this blob, the blob is in the store already, or every fetch downloads it anew.
func (e *Downloader) hopeless(ctx context.Context, err error) bool {
	return errdefs.IsDataLoss(err) || errdefs.IsResourceExhausted(err) || errors.Is(context.Cause(ctx), errDownloadedElsewhere) || e.opts.Refresh
}

// sameSize compares the size in a descriptor with that of the blob in the store, which is not downloaded again. So
// whether a manifest is valid does not depend on what was pulled before.
func (e *Downloader) sameSize(ctx context.Context, desc ocispec.Descriptor) error {
	info, err := e.store.Info(ctx, desc.Digest)
	if err == nil && info.Size != desc.Size {
		err = fmt.Errorf("%d bytes where the manifest announces %d: %w", info.Size, desc.Size, errdefs.ErrDataLoss)
	}
	return err
}

// commit ends an ingest. That the store had the blob meanwhile is as good.
func commit(ctx context.Context, w content.Writer, desc ocispec.Descriptor) error {
	err := w.Commit(ctx, desc.Size, desc.Digest)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return nil
	case errdefs.IsFailedPrecondition(err): // what stores answer a wrong digest or size with
		return fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
	}
	return err
}

func (e *Downloader) progress(at Event) {
	if e.opts.Progress != nil {
		e.opts.Progress(at)
	}
}

// Store writes bytes that are in memory and verified.
func (e *Downloader) Store(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	// No other fetch waits for this: the bytes are in memory, and each holder has ingests of its own.
	w, _, err := e.open(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	if err := commit(ctx, w, desc); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return nil
}

// Plain drops what only the manifest around a descriptor needs.
func Plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
