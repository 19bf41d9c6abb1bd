package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BenchmarkRead reads a blob as containerd does: 32 KiB at a time for an export, 1 MiB at a time
// for a push, and all at once for a stream.
func BenchmarkRead(b *testing.B) {
	w, err := serve(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			b.Error(err)
		}
	}()
	ctx := context.Background()
	const size = 64 << 20
	data := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{}).Read(data); err != nil {
		b.Fatal(err)
	}
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: size}
	cs := contentproxy.NewContentStore(w.conn)
	wr, err := cs.Writer(ctx, content.WithRef("default/1/layer-"+d.Digest.String()),
		content.WithDescriptor(ocispec.Descriptor{Size: size}))
	if err == nil {
		_, err = io.Copy(wr, bytes.NewReader(data))
	}
	if err == nil {
		err = wr.Commit(ctx, size, d.Digest)
	}
	if err != nil {
		b.Fatal(err)
	}
	for _, piece := range []int{32 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("by %d KiB", piece>>10), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				ra, err := cs.ReaderAt(ctx, d)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(ra, 0, size),
					make([]byte, piece)); n != size || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
	b.Run("at once", func(b *testing.B) {
		b.SetBytes(size)
		client := contentapi.NewContentClient(w.conn)
		for b.Loop() {
			stream, err := client.Read(ctx, &contentapi.ReadContentRequest{Digest: d.Digest.String()})
			for err == nil {
				_, err = stream.Recv()
			}
			if err != io.EOF {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWrite writes a blob as containerd does, 1 MiB at a time.
func BenchmarkWrite(b *testing.B) {
	w, err := serve(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			b.Error(err)
		}
	}()
	ctx := context.Background()
	const size = 64 << 20
	data := make([]byte, size)
	cs := contentproxy.NewContentStore(w.conn)
	b.SetBytes(size)
	for b.Loop() {
		// not synced
		wr, err := cs.Writer(ctx, content.WithRef("ref"), content.WithDescriptor(ocispec.Descriptor{Size: 2 * size}))
		if err != nil {
			b.Fatal(err)
		}
		for at := 0; at < size; at += 1 << 20 {
			if _, err := wr.Write(data[at : at+1<<20]); err != nil {
				b.Fatal(err)
			}
		}
		if err := errors.Join(wr.Close(), cs.Abort(ctx, "ref")); err != nil {
			b.Fatal(err)
		}
	}
}
