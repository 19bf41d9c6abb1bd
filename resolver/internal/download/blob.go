package download

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/observe"
)

// Blob downloads a blob into the store unless the store has it, and reports whether it downloaded
// it. A zero deadline means that there is none.
//
// Classes: errdefs.ErrNotFound, ErrUnauthenticated and ErrPermissionDenied (the registry refuses),
// ErrUnavailable (the network or the registry fails), ErrDataLoss (the bytes are not those of the
// descriptor), and those of the store.
func (d *Downloader) Blob(ctx context.Context, desc ocispec.Descriptor, deadline time.Time) (fetched bool, err error) {
	for byOther := true; byOther; {
		if fetched, byOther, err = d.download(ctx, desc, deadline); err != nil {
			return false, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
	}
	return fetched, nil
}

// download waits until desc may be downloaded, and downloads it. byOther reports that another
// download of the same blob was faster, so that the store has the blob now.
func (d *Downloader) download(ctx context.Context, desc ocispec.Descriptor, deadline time.Time) (
	fetched, byOther bool, err error,
) {
	// inner ends when another download completes the blob first.
	inner, slot, done, err := d.inFlight.begin(ctx, desc.Digest, d.repo.Registry)
	if err != nil {
		return false, false, err
	}
	if d.opts.Refresh {
		inner = ctx // a refresh downloads every blob itself
	}
	defer func() { done(err == nil && !byOther) }()
	_, release, err := descriptors.Process.Take(inner, descriptors.Download)
	if err == nil {
		defer release()
		t := &transfer{repo: d.repo, desc: desc, buffers: d.buffers, link: d.link, slot: slot, deadline: deadline}
		fetched, err = d.ingest(inner, t)
	}
	if err != nil && errors.Is(context.Cause(inner), errDownloadedElsewhere) && ctx.Err() == nil {
		return false, true, nil
	}
	return fetched, false, err
}

// ingest downloads the blob of t into an ingest and commits it, unless the store has the blob. If
// the bytes turn out to be wrong, it tries once more.
func (d *Downloader) ingest(ctx context.Context, t *transfer) (fetched bool, err error) {
	w, ref, err := d.open(ctx, t.desc)
	if err != nil {
		return false, d.exists(ctx, t.desc, err)
	}
	ctx, end := observe.Begin(ctx, d.opts.Observe, observe.Event{
		Kind: observe.Download, Subject: t.desc.Digest.String(), Source: d.repo.Registry, Bytes: t.desc.Size,
	})
	result := observe.Result{Err: errPanicked}
	defer func() { end(result) }()

	err = d.write(ctx, w, ref, t)
	result.Bytes = t.received
	if errdefs.IsDataLoss(err) && ctx.Err() == nil {
		// The cause may be bytes of an earlier download, wrongly joined ranges, or one of several
		// hosts. write has aborted the ingest, so the second try begins at the first byte, in one
		// stream, and from another host than the last if there is one.
		second := &transfer{
			repo: t.repo, desc: t.desc, slot: t.slot, deadline: t.deadline, noRanges: true,
		}
		if t.host+1 < len(d.repo.Hosts) {
			second.host = t.host + 1
		}
		second.otherEncoding = t.encoded.Load() && second.host == t.host
		if w, ref, err = d.open(ctx, t.desc); err == nil {
			err = d.write(ctx, w, ref, second)
			result.Bytes += second.received
		} else if err = d.exists(ctx, t.desc, err); err == nil {
			result.Err = nil
			return false, nil
		}
	}
	result.Err = err
	return err == nil, err
}

// errPanicked is the outcome that an observer sees if a download panics.
var errPanicked = fmt.Errorf("the download panicked: %w", errdefs.ErrInternal)

// open opens the ingest of a blob at its current end. The ref of the ingest ends with the digest,
// by which the store recognizes the download of a layer. It is made without the annotations of the
// descriptor, because MakeRefKey would put them into the ref.
//
// A refresh has its own ref, so that it begins with an empty ingest. Its descriptor has no digest,
// because with the digest the store would answer that it has the blob. Commit then compares the
// digest and replaces damaged bytes.
func (d *Downloader) open(ctx context.Context, desc ocispec.Descriptor) (content.Writer, string, error) {
	desc = Plain(desc)
	ref := remotes.MakeRefKey(ctx, desc)
	if d.opts.Refresh {
		ref = "refresh-" + ref
		desc = ocispec.Descriptor{MediaType: desc.MediaType, Size: desc.Size}
	}
	w, err := content.OpenWriter(ctx, d.store, content.WithRef(ref), content.WithDescriptor(desc))
	if err != nil {
		return nil, ref, err
	}
	if d.opts.Refresh {
		if err := w.Truncate(0); err != nil {
			w.Close()
			return nil, ref, err
		}
	}
	return w, ref, nil
}

// exists handles an error of open. If the store has the blob, it reports the blob as cached and
// returns nil.
func (d *Downloader) exists(ctx context.Context, desc ocispec.Descriptor, err error) error {
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := d.sameSize(ctx, desc); err != nil {
		return err
	}
	d.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true, Cached: true})
	return nil
}

// interruptible is a writer that may be closed while another goroutine is in one of its other
// methods, which then returns an error. Tank's own writer is one: its Write may wait while the store
// hashes the bytes of an earlier download, and Close ends the wait. Other stores' writers are closed
// only after Write has returned.
type interruptible interface{ CloseInterrupts() }

// write runs a transfer into an open ingest and commits the ingest. It closes w.
func (d *Downloader) write(ctx context.Context, w content.Writer, ref string, t *transfer) (err error) {
	closeOnce := sync.OnceFunc(func() { w.Close() }) // not every store's writer allows a second Close meanwhile
	stop := func() bool { return ctx.Err() == nil }
	if _, ok := w.(interruptible); ok {
		stop = context.AfterFunc(ctx, closeOnce)
	}
	defer func() {
		stop()
		closeOnce()
		if err != nil && d.useless(ctx, err) {
			_ = d.store.Abort(context.WithoutCancel(ctx), ref) // ctx may have ended
		}
	}()
	status, err := w.Status()
	if err != nil {
		return err
	}
	t.offset = status.Offset
	t.write = func(p []byte) error {
		if _, err := w.Write(p); err != nil {
			return err
		}
		t.received += int64(len(p))
		if t.slot != nil {
			t.slot.bytes.Add(int64(len(p)))
		}
		d.progress(Event{Descriptor: t.desc, Offset: t.offset + int64(len(p))})
		return nil
	}
	d.progress(Event{Descriptor: t.desc, Offset: t.offset})
	err = t.run(ctx)
	if !stop() { // w may be closed
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := commit(ctx, w, t.desc); err != nil {
		return fmt.Errorf("from %s: %w", d.repo.Registry, err)
	}
	d.progress(Event{Descriptor: t.desc, Offset: t.desc.Size, Done: true})
	return nil
}

// useless reports whether no later download can use an ingest that failed with err: its bytes are
// wrong, the disk is full, the store has the blob, or the ingest belongs to a refresh, which always
// begins anew.
func (d *Downloader) useless(ctx context.Context, err error) bool {
	return errdefs.IsDataLoss(err) || errdefs.IsResourceExhausted(err) ||
		errors.Is(context.Cause(ctx), errDownloadedElsewhere) || d.opts.Refresh
}

// sameSize compares the size in a descriptor with the size of the blob in the store. A descriptor
// with a wrong size is thus refused whether or not its blob was downloaded before.
func (d *Downloader) sameSize(ctx context.Context, desc ocispec.Descriptor) error {
	info, err := d.store.Info(ctx, desc.Digest)
	if err == nil && info.Size != desc.Size {
		err = fmt.Errorf("the blob has %d bytes, its descriptor states %d: %w",
			info.Size, desc.Size, errdefs.ErrDataLoss)
	}
	return err
}

// commit commits an ingest. It succeeds as well if another ingest of the same blob was committed
// first.
func commit(ctx context.Context, w content.Writer, desc ocispec.Descriptor) error {
	err := w.Commit(ctx, desc.Size, desc.Digest)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return nil
	case errdefs.IsFailedPrecondition(err): // the class with which stores report a wrong digest or size
		return fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
	}
	return err
}

func (d *Downloader) progress(e Event) {
	if d.opts.Progress != nil {
		d.opts.Progress(e)
	}
}

// Store writes a blob whose bytes are in memory and verified. It does not wait for another download
// of the same blob.
func (d *Downloader) Store(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	w, _, err := d.open(ctx, desc)
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

// Plain returns a descriptor with only the media type, the digest and the size of desc.
func Plain(desc ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
}
