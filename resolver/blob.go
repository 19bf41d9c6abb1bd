package resolver

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

// blob downloads desc into the store unless it is there, and reports whether it did. A zero by is no deadline.
func (f *fetch) blob(ctx context.Context, desc ocispec.Descriptor, by time.Time) (fresh bool, err error) {
	for arrived := true; arrived; {
		if fresh, arrived, err = f.turn(ctx, desc, by); err != nil {
			return false, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
	}
	return fresh, nil
}

// turn waits until desc may be downloaded, and downloads it. arrived reports that another download of it was faster, so
// that it is in the store.
func (f *fetch) turn(ctx context.Context, desc ocispec.Descriptor, by time.Time) (fresh, arrived bool, err error) {
	own, turn, done, err := f.repo.flights.take(ctx, desc.Digest, f.repo.registry)
	if err != nil {
		return false, false, err
	}
	if f.Refresh {
		own = ctx // a refresh must download every blob itself
	}
	defer func() { done(err == nil && !arrived) }()
	_, release, err := descriptors.Process.Take(own, descriptors.Download)
	if err != nil {
		if errors.Is(context.Cause(own), errArrived) && ctx.Err() == nil {
			return false, true, nil
		}
		return false, false, err
	}
	defer release()
	d := &download{repo: f.repo, desc: desc, buffers: f.buffers, pace: f.pace, turn: turn, by: by}
	fresh, err = f.ingest(own, d)
	if errdefs.IsDataLoss(err) && own.Err() == nil {
		// Bytes of an older download, or badly joined ranges, or one host of several may be to blame. The bytes are gone now, so the registry
		// deserves one more chance: from the beginning, in one piece, and from another host than the last if there is one.
		next := 0
		if d.host+1 < len(f.repo.hosts) {
			next = d.host + 1
		}
		fresh, err = f.ingest(own, &download{
			repo: f.repo, desc: desc, host: next, whole: true, other: d.encoded.Load() && next == d.host, turn: turn, by: by,
		})
	}
	if err != nil && errors.Is(context.Cause(own), errArrived) && ctx.Err() == nil {
		return false, true, nil
	}
	return fresh, false, err
}

// open opens the ingest of desc at its present end, under a ref that ends with the digest: by that the store recognises a layer in progress.
// Annotations of the manifest must not get into the ref.
//
// A refresh has a ref of its own, so that it begins with nothing, and keeps the digest from the descriptor: with it the store would answer
// that the blob is there. Commit, which is told the digest, then compares, and heals what the store has.
func (f *fetch) open(ctx context.Context, desc ocispec.Descriptor) (content.Writer, string, error) {
	desc = plain(desc)
	ref := remotes.MakeRefKey(ctx, desc)
	if f.Refresh {
		ref = "refresh-" + ref
		desc = ocispec.Descriptor{MediaType: desc.MediaType, Size: desc.Size}
	}
	w, err := content.OpenWriter(ctx, f.into, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return nil, ref, err
	}
	if f.Refresh {
		if err := w.Truncate(0); err != nil {
			w.Close()
			return nil, ref, err
		}
	}
	return w, ref, nil
}

// ingest runs one ingest to its commit, and says whether it was needed.
func (f *fetch) ingest(ctx context.Context, d *download) (fresh bool, err error) {
	desc := d.desc
	w, ref, err := f.open(ctx, desc)
	if errdefs.IsAlreadyExists(err) {
		if err := f.sameSize(ctx, desc); err != nil {
			return false, err
		}
		f.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true, Cached: true})
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
		if err != nil && f.hopeless(ctx, err) {
			_ = f.into.Abort(context.WithoutCancel(ctx), ref) // the context may be over already
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
		if d.turn != nil {
			d.turn.bytes.Add(int64(len(p)))
		}
		f.progress(Event{Descriptor: desc, Offset: d.offset + int64(len(p))})
		return nil
	}
	f.progress(Event{Descriptor: desc, Offset: d.offset})
	err = d.run(ctx)
	if !closed() {
		return false, ctx.Err()
	}
	if err != nil {
		return false, err
	}
	if err := commit(ctx, w, desc); err != nil {
		return false, fmt.Errorf("from %s: %w", f.repo.registry, err)
	}
	f.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true})
	return true, nil
}

// hopeless reports whether an ingest that failed with err is of no use to a later fetch: the disk is full, its bytes
// are not the beginning of this blob, the blob is in the store already, or every fetch downloads it anew.
func (f *fetch) hopeless(ctx context.Context, err error) bool {
	return errdefs.IsDataLoss(err) || errdefs.IsResourceExhausted(err) || errors.Is(context.Cause(ctx), errArrived) || f.Refresh
}

// sameSize compares the size in a descriptor with that of the blob in the store, which is not downloaded again. So
// whether a manifest is valid does not depend on what was pulled before.
func (f *fetch) sameSize(ctx context.Context, desc ocispec.Descriptor) error {
	info, err := f.into.Info(ctx, desc.Digest)
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

func (f *fetch) progress(e Event) {
	if f.Progress != nil {
		f.Progress(e)
	}
}
