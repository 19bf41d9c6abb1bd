package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// BenchmarkExtract extracts 4,000 files of 1 KiB in 200 directories, and 4 files of 16 MiB. It reports allocations per
// entry. TMPDIR selects the file system to measure.
func BenchmarkExtract(b *testing.B) {
	for _, row := range []struct {
		name              string
		dirs, files, size int
	}{{"small", 200, 4000, 1 << 10}, {"large", 1, 4, 16 << 20}} {
		stream := benchStream(b, row.dirs, row.files, row.size)
		entries := float64(row.dirs + row.files)
		b.Run(row.name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				path := filepath.Join(b.TempDir(), fmt.Sprint(n))
				if err := os.Mkdir(path, 0o755); err != nil {
					b.Fatal(err)
				}
				dir, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				_, err = unpack.Extract(b.Context(), dir, bytes.NewReader(stream),
					&unpack.Options{Unprivileged: os.Geteuid() != 0})
				b.StopTimer()
				dir.Close()
				if err != nil {
					b.Fatal(err)
				}
				if err := os.RemoveAll(path); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(b.N)/entries, "µs/entry")
			b.ReportMetric(allocations(b, stream)/entries, "allocs/entry")
		})
	}
}

// BenchmarkTar only reads the headers of the small files. It shows how much of Extract's time package tar takes.
func BenchmarkTar(b *testing.B) {
	stream := benchStream(b, 200, 4000, 1<<10)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		for r := tar.NewReader(bytes.NewReader(stream)); ; {
			if _, err := r.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// allocations returns the number of allocations of one extraction of the stream.
func allocations(b *testing.B, stream []byte) float64 {
	b.Helper()
	return testing.AllocsPerRun(1, func() {
		dir, err := os.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		defer dir.Close()
		if _, err := unpack.Extract(b.Context(), dir, bytes.NewReader(stream),
			&unpack.Options{Unprivileged: os.Geteuid() != 0}); err != nil {
			b.Fatal(err)
		}
	})
}

// benchStream returns a tar of files, each of size bytes, spread over the directories.
func benchStream(b *testing.B, dirs, files, size int) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, data []byte) {
		h.ModTime = time.Unix(1700000000, 0)
		if err := w.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	data := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	for d := range dirs {
		dir := fmt.Sprintf("usr/share/bench/directory-%d/", d)
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		for f := range files / dirs {
			name := fmt.Sprintf("%sfile-%d", dir, f)
			add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}, data)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}
