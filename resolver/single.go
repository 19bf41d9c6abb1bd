package resolver

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tank-snapshotter/tank/resolver/internal/download"
)

// Manifest is one manifest or index of a registry: its bytes hash to Digest, and its media type
// fits its content.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Raw       []byte
	Manifest  *ocispec.Manifest // of an image manifest, else nil
	Index     *ocispec.Index    // of an index, else nil
}

// Descriptor is how others refer to m.
func (m *Manifest) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Raw))}
}

// Manifest gets what ref stands for, by its digest if it has one. No platform is chosen.
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

// Blob reads the blob desc of ref's repository; ref's tag and digest are of no interest. A download
// that is cut goes on where it was. Read answers io.EOF only after exactly desc.Size bytes that
// hash to desc.Digest, and an error of class ErrDataLoss otherwise, so what was read is to be
// believed at the end and not before. The caller closes the reader.
//
// Classes: those of Resolve; ErrInvalidArgument also for a descriptor without sha256 digest or with
// a negative size.
func (r *Resolver) Blob(ctx context.Context, ref Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if ref.named == nil {
		return nil, errNoReference
	}
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || desc.Size < 0 {
		return nil, fmt.Errorf("blob %q of %d bytes: not a descriptor: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
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

// blobReader hashes what passes.
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
	if err == io.EOF { //nolint:errorlint // a pipe's end is this value
		if got := digest.NewDigest(digest.SHA256, b.hash); got != b.desc.Digest || b.size != b.desc.Size {
			return n, fmt.Errorf("blob %s: %d bytes that hash to %s: %w", b.desc.Digest, b.size, got, errdefs.ErrDataLoss)
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
