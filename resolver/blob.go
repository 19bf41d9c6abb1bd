package resolver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blob downloads desc into the store unless it is there, and says whether it did.
func (f *fetch) blob(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	fresh, resumed, err := f.ingest(ctx, desc)
	if errdefs.IsDataLoss(err) && resumed {
		// An older download's bytes may be to blame. They are gone now, so the registry deserves one more chance.
		fresh, _, err = f.ingest(ctx, desc)
	}
	if err != nil {
		return false, fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return fresh, nil
}

// ingest runs one ingest of desc to its commit. It says whether it was needed, and whether it began with bytes of an earlier one.
func (f *fetch) ingest(ctx context.Context, desc ocispec.Descriptor) (fresh, resumed bool, err error) {
	// The ref ends with the digest: that is what the store recognises a layer in progress by. Annotations of the manifest must not get into it.
	ref := remotes.MakeRefKey(ctx, plain(desc))
	w, err := content.OpenWriter(ctx, f.into, content.WithRef(ref), content.WithDescriptor(plain(desc)))
	if errdefs.IsAlreadyExists(err) {
		f.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true, Cached: true})
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer func() {
		w.Close()
		if errdefs.IsDataLoss(err) {
			// Whatever lies in the ingest is not the beginning of this blob. The caller's context may be over already.
			_ = f.into.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	status, err := w.Status()
	if err != nil {
		return false, false, err
	}
	resumed = status.Offset > 0
	if err := f.download(ctx, w, desc, status.Offset); err != nil {
		return false, resumed, err
	}
	if err := w.Commit(ctx, desc.Size, desc.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		if errdefs.IsFailedPrecondition(err) { // what stores answer a wrong digest or size with
			err = fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
		}
		return false, resumed, fmt.Errorf("from %s: %w", f.repo.registry, err)
	}
	f.progress(Event{Descriptor: desc, Offset: desc.Size, Done: true})
	return true, resumed, nil
}

func (f *fetch) progress(e Event) {
	if f.Progress != nil {
		f.Progress(e)
	}
}

// download writes what the ingest lacks, from the first host that gives it. As long as every attempt brings new bytes it goes on.
func (f *fetch) download(ctx context.Context, w content.Writer, desc ocispec.Descriptor, offset int64) error {
	if offset > desc.Size {
		return fmt.Errorf("ingest has %d of %d bytes: %w", offset, desc.Size, errdefs.ErrDataLoss)
	}
	f.progress(Event{Descriptor: desc, Offset: offset})
	var first error
	hosts := f.repo.hosts
	for i := 0; offset < desc.Size && i < len(hosts); {
		if !hosts[i].Capabilities.Has(docker.HostCapabilityPull) {
			i++
			continue
		}
		last := i == len(hosts)-1
		for attempt := 1; ; attempt++ {
			n, err := f.copyFrom(ctx, hosts[i], w, desc, offset)
			offset += n
			if err == nil {
				return nil
			}
			if ctx.Err() != nil || errdefs.IsDataLoss(err) || !isSource(err) {
				return err
			}
			if first == nil || errdefs.IsNotFound(first) {
				first = err
			}
			if n > 0 {
				attempt = 1
			}
			if !temporary(err) || attempt >= f.repo.opts.Attempts || (!last && n == 0) {
				break
			}
			if err := f.repo.pause(ctx, attempt, err); err != nil {
				return err
			}
		}
		i++
	}
	if offset < desc.Size && first == nil {
		first = fmt.Errorf("registry %s: no host is configured to be pulled from: %w", f.repo.registry, errdefs.ErrNotFound)
	}
	return first
}

// sourceError came from a registry; other errors of copyFrom are the store's, and another host or attempt can't help against them.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

func isSource(err error) bool { return errors.As(err, new(sourceError)) }

// copyFrom writes desc's bytes from offset on and returns how many it wrote.
func (f *fetch) copyFrom(ctx context.Context, host *endpoint, w content.Writer, desc ocispec.Descriptor, offset int64) (int64, error) {
	resp, err := f.repo.get(ctx, host, "blobs", desc.Digest.String(), "*/*", span{start: offset})
	if err != nil {
		if errdefs.IsOutOfRange(err) { // the registry has fewer bytes than we do
			err = fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss)
		}
		return 0, sourceError{err}
	}
	defer resp.Body.Close()
	if err := position(resp, desc, offset); err != nil {
		return 0, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	var written int64
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if offset+written+int64(n) > desc.Size {
			return written, sourceError{fmt.Errorf("registry %s: more than the announced %d bytes: %w", host.Host, desc.Size, errdefs.ErrDataLoss)}
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return written, err
			}
			written += int64(n)
			f.progress(Event{Descriptor: desc, Offset: offset + written})
		}
		switch {
		case err == nil:
		case offset+written == desc.Size: // complete, however the connection ended
			return written, nil
		case ctx.Err() != nil:
			return written, fmt.Errorf("registry %s: %w", host.Host, ctx.Err())
		case errors.Is(err, io.EOF):
			return written, sourceError{fmt.Errorf("registry %s: the body ended at %d of %d bytes: %w", host.Host, offset+written, desc.Size, errdefs.ErrUnavailable)}
		default:
			return written, sourceError{fmt.Errorf("registry %s: the body broke at %d of %d bytes: %v: %w", host.Host, offset+written, desc.Size, err, errdefs.ErrUnavailable)}
		}
	}
}

// position makes the body start at offset: a 206 has to say that it does, and of a 200 the beginning is skipped.
func position(resp *http.Response, desc ocispec.Descriptor, offset int64) error {
	if resp.StatusCode == http.StatusPartialContent {
		var start, end int64
		var total string
		n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%s", &start, &end, &total)
		if n != 3 || offset == 0 || start != offset || end != desc.Size-1 || (total != "*" && total != fmt.Sprint(desc.Size)) {
			return fmt.Errorf("asked for bytes from %d on, got %q: %w", offset, strings.TrimSpace(resp.Header.Get("Content-Range")), errdefs.ErrDataLoss)
		}
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != desc.Size {
		return fmt.Errorf("%d bytes where %d were announced: %w", resp.ContentLength, desc.Size, errdefs.ErrDataLoss)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
		return fmt.Errorf("the body broke before byte %d: %v: %w", offset, err, errdefs.ErrUnavailable)
	}
	return nil
}
