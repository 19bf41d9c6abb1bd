package content

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

// BenchmarkWriter writes, hashes and commits a blob of 64 MiB, in pieces of 1 MiB as containerd
// does, and of 32 KiB as a download may.
func BenchmarkWriter(b *testing.B) {
	const size = 64 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	desc := ocispec.Descriptor{Size: size, Digest: digest.FromBytes(data)}
	for _, row := range []struct {
		name  string
		piece int
	}{{"1MiB", 1 << 20}, {"32KiB", 32 << 10}} {
		b.Run(row.name, func(b *testing.B) {
			s := openForBench(b)
			hs := s.For(metadata.Containerd)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				w, err := hs.Writer(b.Context(), content.WithRef("bench"),
					content.WithDescriptor(ocispec.Descriptor{Size: size}))
				if err != nil {
					b.Fatal(err)
				}
				for at := 0; at < size; at += row.piece {
					if _, err := w.Write(data[at : at+row.piece]); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Commit(b.Context(), size, desc.Digest); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := hs.Delete(b.Context(), desc.Digest); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Sweep(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// openForBench opens a store whose database does not sync, because the benchmarks measure the
// files.
func openForBench(b *testing.B) *Store {
	b.Helper()
	dir := b.TempDir()
	db, err := metadata.Open(filepath.Join(dir, "metadata.db"), &metadata.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	s, err := Open(dir, db, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}
