package tank_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// BenchmarkPull pulls an image of three layers, about 110 MB in 3,000 files, into a new root each
// time. MB/s counts unpacked bytes. Put TMPDIR on tmpfs. docs/performance.md compares pulls with
// other programs.
func BenchmarkPull(b *testing.B) {
	reg, size := benchImage(b, 500, 1000, 1500)
	ref := reg.Host + "/x:1"
	for _, daemon := range []bool{false, true} {
		b.Run(fmt.Sprintf("daemon=%v", daemon), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				dir := filepath.Join(b.TempDir(), fmt.Sprint(n))
				tk, err := tank.Open(dir, &tank.Options{Daemon: daemon})
				if err != nil {
					b.Fatal(err)
				}
				_, err = tk.Pull(context.Background(), ref, &tank.PullOptions{NoSync: true})
				b.StopTimer()
				if err == nil {
					err = tk.Close()
				}
				if err == nil {
					err = os.RemoveAll(dir)
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// benchImage starts a registry with an image x:1, which has one layer for each number of files.
// size is the number of unpacked bytes.
func benchImage(b *testing.B, layers ...int) (reg *registrytest.Registry, size int64) {
	b.Helper()
	reg = registrytest.New(b)
	var blobs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for i, files := range layers {
		stream, blob := benchLayer(b, i, files)
		size += int64(len(stream))
		blobs = append(blobs, reg.Blob(ocispec.MediaTypeImageLayerGzip, blob))
		diffIDs = append(diffIDs, digest.FromBytes(stream))
	}
	reg.Image("1", platforms.DefaultSpec(), blobs, diffIDs)
	return reg, size
}

// benchLayer makes the tar of a layer and its gzip, which is 2.3 times smaller. The files have a
// median size of 6 KB and a mean size of 36 KB. The same arguments give the same bytes.
func benchLayer(b *testing.B, index, files int) (stream, blob []byte) {
	b.Helper()
	rng := rand.New(rand.NewPCG(7, uint64(index)))
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 2+rng.IntN(9))
		for j := range words[i] {
			words[i][j] = byte('a' + rng.IntN(26))
		}
	}
	var plain, packed bytes.Buffer
	tw := tar.NewWriter(&plain)
	add := func(h tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), time.Unix(1700000000, 0)
		if err := tw.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	for n := range files {
		dir := fmt.Sprintf("layer%d/dir%d", index, n/13)
		if n%13 == 0 {
			add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
		size := min(int(math.Exp(rng.NormFloat64()*1.9+8.7)), 8<<20)
		data := make([]byte, 0, size+16)
		for len(data) < size {
			word := words[int(math.Exp(rng.Float64()*math.Log(float64(len(words)))))-1]
			data = append(append(data, word...), ' ')
			if rng.IntN(4) == 0 {
				data = append(data, byte(rng.Uint32()), byte(rng.Uint32()))
			}
		}
		add(tar.Header{Name: fmt.Sprintf("%s/file%d", dir, n), Typeflag: tar.TypeReg, Mode: 0o644}, data[:size])
	}
	if err := tw.Close(); err != nil {
		b.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	return plain.Bytes(), packed.Bytes()
}
