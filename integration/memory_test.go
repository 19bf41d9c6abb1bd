package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxResident is the resident memory that a pull may have, whatever the size of the image.
const maxResident = 150 << 20

// TestMemory: the resident memory of a pull of a 700 MB image stays below 150 MB.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 2 GB")
	}
	e := New(t)
	layout := e.Path("big")
	size := writeBigImage(t, layout, 6, 118<<20)
	if size < 700e6 {
		t.Fatalf("the image has %d bytes", size)
	}
	addr := serveLayout(t, layout)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e.Use(t)
			k := e.NewTank()
			k.broken = true // a check would read it all once more
			argv := k.Args("pull", "--no-sync", "--progress", "none", addr+"/test/big:1")
			watched := func(pull *Process) *Process { return pull }
			if daemon {
				k.Serve()
				watched = func(*Process) *Process { return k.Daemon() }
			}
			pull := e.Start("pull", argv...)
			peak := peakMemory(watched(pull), pull)
			if code, err := pull.Wait(time.Second); err != nil || code != 0 {
				t.Fatalf("exit %d, %v: %s", code, err, tail(pull.Log, 4000))
			}
			t.Logf("VmHWM %d MB", peak>>20)
			if peak == 0 || peak > maxResident {
				t.Errorf("VmHWM %d MB, more than %d", peak>>20, maxResident>>20)
			}
			if daemon {
				k.Daemon().Stop()
			}
			if err := os.RemoveAll(k.Root); err != nil {
				t.Error(err)
			}
		})
	}
}

// peakMemory is the greatest resident memory in bytes that p has had when until ends.
func peakMemory(p, until *Process) int64 {
	var peak int64
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
		if m := highWater.FindSubmatch(b); err == nil && m != nil {
			if kb, err := strconv.ParseInt(string(m[1]), 10, 64); err == nil {
				peak = max(peak, kb<<10)
			}
		}
		select {
		case <-until.Done():
			return peak
		case <-time.After(5 * time.Millisecond):
		}
	}
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// writeBigImage writes an image of so many layers of so many bytes, with files that do not compress,
// and returns the size of its blobs.
func writeBigImage(t testing.TB, layout string, layers int, layerSize int64) (total int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	var img Image
	for i := range layers {
		d, diffID := writeBigLayer(t, layout, i, layerSize)
		img.Layers, img.DiffIDs, total = append(img.Layers, d), append(img.DiffIDs, diffID), total+d.Size
	}
	writeImage(t, layout, &img)
	return total
}

// writeImage writes config and manifest of an image whose layers are there, and tags it.
func writeImage(t testing.TB, layout string, img *Image) {
	t.Helper()
	put := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return putBlob(t, layout, mediaType, b)
	}
	img.Config = put(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: img.DiffIDs},
	})
	m := put(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: img.Config,
		Layers: img.Layers,
	})
	if err := os.Symlink(filepath.Base(blobFile(layout, m.Digest)),
		filepath.Join(layout, "blobs", "sha256", "tagged")); err != nil {
		t.Fatal(err)
	}
}

// putBlob writes a blob into the layout.
func putBlob(t testing.TB, layout, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	path := blobFile(layout, d.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// writeBigLayer writes one layer: a gzip stream of stored blocks, files of 1 MiB and of 64 KiB in turn.
func writeBigLayer(t testing.TB, layout string, n int, size int64) (ocispec.Descriptor, digest.Digest) {
	t.Helper()
	f, err := os.Create(filepath.Join(layout, "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blob, diff := digest.SHA256.Digester(), digest.SHA256.Digester()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, blob.Hash()), gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, diff.Hash()))
	source := rand.NewChaCha8([32]byte{byte(n)})
	buf := make([]byte, 1<<20)
	for i := 0; size > 0; i++ {
		part := buf
		if i%2 == 1 {
			part = buf[:64<<10]
		}
		_, _ = source.Read(part)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("layer%d/d%02d/file%04d", n, i%50, i), Mode: 0o644,
			Size: int64(len(part))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		size -= int64(len(part))
	}
	for _, end := range []func() error{w.Close, z.Close} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	st, err := f.Stat()
	if err == nil {
		err = os.Rename(f.Name(), blobFile(layout, blob.Digest()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob.Digest(), Size: st.Size()},
		diff.Digest()
}

// serveLayout is a registry in which every tag is the manifest that blobs/sha256/tagged names. A real
// one would have to store all the bytes first.
func serveLayout(t testing.TB, layout string) (addr string) {
	t.Helper()
	blobs := filepath.Join(layout, "blobs", "sha256")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			if !strings.Contains(name, ":") {
				name = "tagged"
			}
		} else {
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		f, err := os.Open(filepath.Join(blobs, strings.TrimPrefix(name, "sha256:")))
		if err != nil || !strings.Contains(r.URL.Path, "/test/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		defer f.Close()
		http.ServeContent(w, r, "", time.Time{}, f)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// entriesVariable is an environment variable: how many entries the image of TestMemoryOfEntries has.
// Its promise is about 500000, which take a minute.
const entriesVariable = "TANK_TEST_ENTRIES"

// TestMemoryOfEntries: the resident memory of a pull stays within 256 MiB when its image has 500,000
// entries in directories that the tar only implies, so that a fix-up is planned for them. With fewer entries
// the limit is proportionally lower.
func TestMemoryOfEntries(t *testing.T) {
	const most, promised, fixed = 256 << 20, 500_000, 60 << 20
	entries := 40_000
	if n, err := strconv.Atoi(os.Getenv(entriesVariable)); err == nil {
		entries = n
	}
	limit := fixed + (most-fixed)*int64(entries)/promised
	e := New(t)
	layout := e.Path("many")
	writeLayersOf(t, layout, entries/4, entries*3/4)
	addr := serveLayout(t, layout)
	k := e.NewTank()
	k.broken = true
	k.Root = shortLived(t)
	pull := e.Start("pull", k.Args("pull", "--no-sync", "--progress", "none", addr+"/test/many:1")...)
	peak := peakMemory(pull, pull)
	if code, err := pull.Wait(time.Second); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, tail(pull.Log, 4000))
	}
	t.Logf("%d entries: VmHWM %d MB of %d", entries, peak>>20, limit>>20)
	if peak == 0 || peak > limit {
		t.Errorf("VmHWM %d MB for %d entries, more than %d", peak>>20, entries, limit>>20)
	}
}

// shortLived returns a directory in memory if there is one, because many files take long on a disk.
func shortLived(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tank-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeLayersOf writes an image whose layers have so many entries each, empty files below directories
// that no layer but the first has an entry for.
func writeLayersOf(t testing.TB, layout string, entries ...int) {
	t.Helper()
	var img Image
	for i, n := range entries {
		var b bytes.Buffer
		diff := digest.SHA256.Digester()
		z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		w := tar.NewWriter(io.MultiWriter(z, diff.Hash()))
		if i == 0 {
			for _, d := range []string{"usr", "usr/lib", "usr/lib/modules"} {
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o700}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for j := range n {
			h := &tar.Header{Typeflag: tar.TypeReg, Mode: 0o644,
				Name: fmt.Sprintf("usr/lib/modules/layer%d-%d/file%06d.conf", i, j/1000, j)}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		for _, end := range []func() error{w.Close, z.Close} {
			if err := end(); err != nil {
				t.Fatal(err)
			}
		}
		img.Layers = append(img.Layers, putBlob(t, layout, ocispec.MediaTypeImageLayerGzip, b.Bytes()))
		img.DiffIDs = append(img.DiffIDs, diff.Digest())
	}
	writeImage(t, layout, &img)
}
