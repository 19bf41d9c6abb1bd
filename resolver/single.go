package resolver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/internal/download"
)

// Manifest is a manifest or an index of a registry. Its bytes hash to Digest, and its media type
// agrees with its content.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Raw       []byte
	Manifest  *ocispec.Manifest // nil for an index
	Index     *ocispec.Index    // nil for an image manifest
}

// Descriptor returns the descriptor of m.
func (m *Manifest) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Raw))}
}

// Manifest downloads the document that ref names, by its digest if it has one. It does not choose a
// platform.
//
// Classes: those of Resolve.
func (r *Resolver) Manifest(ctx context.Context, ref Reference) (*Manifest, error) {
	doc, err := r.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &Manifest{
		MediaType: doc.MediaType, Digest: doc.digest, Raw: doc.bytes, Manifest: doc.Manifest, Index: doc.Index,
	}, nil
}

// Blob downloads the blob desc from the repository of ref; it ignores the tag and the digest of
// ref. It resumes a download that breaks. Read returns io.EOF only after exactly desc.Size bytes
// that hash to desc.Digest, and otherwise an error of class errdefs.ErrDataLoss. The bytes are
// therefore verified at the end, and not before. The caller closes the reader.
//
// Classes: those of Resolve; errdefs.ErrInvalidArgument also for a descriptor without a sha256
// digest or with a negative size.
func (r *Resolver) Blob(ctx context.Context, ref Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if ref.named == nil {
		return nil, errNoReference
	}
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || desc.Size < 0 {
		return nil, fmt.Errorf("blob %q of %d bytes: not a valid descriptor: %w",
			desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	repo, err := r.repository(ctx, ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	b := &blobReader{PipeReader: pr, cancel: cancel, done: make(chan struct{}), desc: desc, hash: sha256.New()}
	begun := make(chan struct{}, 1)
	write := func(p []byte) error {
		select {
		case begun <- struct{}{}:
		default:
		}
		_, err := pw.Write(p)
		return err
	}
	var failed error
	go func() {
		defer close(b.done)
		if failed = download.Stream(ctx, repo, desc, write); failed != nil {
			failed = fmt.Errorf("blob %s: %w", desc.Digest, failed)
		}
		pw.CloseWithError(failed)
	}()
	select {
	case <-begun:
	case <-b.done:
		if failed != nil {
			cancel()
			return nil, failed
		}
	}
	return b, nil
}

// Replace downloads the blob desc from the repository of ref into a store, whether or not the store has it, and so
// replaces one that is damaged. It ignores the tag and the digest of ref. A size of 0 in desc means that it is not
// known. An empty media type may be that of a layer or of a manifest. progress is like FetchOptions.Progress.
//
// Classes: those of Blob and those of the store.
func (r *Resolver) Replace(ctx context.Context, into content.Store, ref Reference, desc ocispec.Descriptor,
	progress func(Event),
) error {
	if ref.named == nil {
		return errNoReference
	}
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || desc.Size < 0 {
		return fmt.Errorf("blob %q of %d bytes: not a valid descriptor: %w",
			desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	repo, err := r.repository(ctx, ref)
	if err != nil {
		return err
	}
	blobs := download.New(repo, into, download.Options{
		Ranges: r.opts.Ranges, ChunkSize: r.opts.ChunkSize, Divided: r.divided, InFlight: r.inFlight, Refresh: true,
		Progress: progress, Observe: r.opts.Observe,
	})
	document := images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType)
	if !document {
		if _, err = blobs.Blob(ctx, desc, time.Time{}); !errdefs.IsNotFound(err) || desc.MediaType != "" {
			return err
		}
	}
	doc, derr := manifest(ctx, repo, desc.Digest.String(), desc.Digest, desc.MediaType)
	if derr != nil {
		return errors.Join(err, derr)
	}
	return blobs.Store(ctx, doc.descriptor(), doc.bytes)
}

// blobReader hashes the bytes that it returns.
type blobReader struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{} // closed when the download has ended
	desc   ocispec.Descriptor
	hash   hash.Hash
	size   int64
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.PipeReader.Read(p)
	b.hash.Write(p[:n])
	b.size += int64(n)
	if err == io.EOF { //nolint:errorlint // a pipe returns this value unwrapped
		if got := digest.NewDigest(digest.SHA256, b.hash); got != b.desc.Digest || b.size != b.desc.Size {
			return n, fmt.Errorf("blob %s: the registry sent %d bytes that hash to %s: %w",
				b.desc.Digest, b.size, got, errdefs.ErrDataLoss)
		}
	}
	return n, err
}

// Close ends the download.
func (b *blobReader) Close() error {
	b.cancel()
	err := b.PipeReader.Close()
	<-b.done
	return err
}
