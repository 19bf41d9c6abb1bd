package tank_test

import (
	"context"
	"crypto/rand"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// smallDisk returns a root on its own tmpfs of the given size.
func smallDisk(t *testing.T, size string) *root {
	t.Helper()
	requireRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	r := &root{dir: filepath.Join(dir, "root")}
	return r
}

// noise pushes a layer that compression does not make smaller.
func noise(t *testing.T, reg *registrytest.Registry, mib int) (ocispec.Descriptor, digest.Digest) {
	t.Helper()
	bytes := make([]byte, mib<<20)
	_, _ = rand.Read(bytes)
	tar := Tar(t, F("noise", string(bytes)))
	return reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar)), digest.FromBytes(tar)
}

// TestFullDisk shows that a pull downloads only what fits on the disk, and that a pull that fails
// for lack of space leaves room for another.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const id = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for name, tc := range map[string]struct {
		image    func(reg *registrytest.Registry) // pushes :full
		requests int                              // largest number of requests for its large layer
	}{
		"announced": {func(reg *registrytest.Registry) {
			fake := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: id, Size: math.MaxInt64 / 2}
			reg.Image("full", platforms.DefaultSpec(), []ocispec.Descriptor{fake}, []digest.Digest{id})
		}, 0},
		"together": {func(reg *registrytest.Registry) {
			var layers []ocispec.Descriptor
			var ids []digest.Digest
			for range 3 {
				l, id := noise(t, reg, 9)
				layers, ids = append(layers, l), append(ids, id)
			}
			reg.Image("full", platforms.DefaultSpec(), layers, ids)
		}, 0},
		"unpacked": {func(reg *registrytest.Registry) {
			l, id := noise(t, reg, 14)
			reg.Image("full", platforms.DefaultSpec(), []ocispec.Descriptor{l}, []digest.Digest{id})
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			tc.image(reg)
			l, id := noise(t, reg, 9)
			reg.Image("good", platforms.DefaultSpec(), []ocispec.Descriptor{l}, []digest.Digest{id})
			r := smallDisk(t, "24m")
			for range 2 {
				before := reg.Count("/blobs/")
				if _, err := r.pull(t, reg.Host+"/x:full", nil); err == nil {
					t.Fatal("the pull succeeded")
				}
				if n := reg.Count("/blobs/") - before; n > tc.requests+1 { // one more for the config
					t.Errorf("%d requests for blobs", n)
				}
				for _, dir := range []string{"ingest", "blobs/sha256"} {
					left, err := os.ReadDir(filepath.Join(r.dir, dir))
					must(t, err)
					if len(left) > 0 {
						t.Errorf("%s has %v", dir, left)
					}
				}
			}
			_, err := r.pull(t, reg.Host+"/x:good", nil)
			must(t, err)
		})
	}
}

// TestUnfinishedPullsMakeRoom shows that the partial downloads of a failed pull, which are kept for
// a day, do not block another pull when the disk is full.
func TestUnfinishedPullsMakeRoom(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	for _, tag := range []string{"broken", "good"} {
		one, idOne := noise(t, reg, 4)
		two, idTwo := noise(t, reg, 5)
		reg.Image(tag, platforms.DefaultSpec(), []ocispec.Descriptor{one, two}, []digest.Digest{idOne, idTwo})
		if tag == "broken" { // the pull fails with one complete layer and a part of the other
			part := make([]byte, two.Size)
			reg.Fault = registrytest.On("/blobs/"+two.Digest.String(),
				func(w http.ResponseWriter, req *http.Request) bool {
					return req.Header.Get("Range") != "" && registrytest.Answer(http.StatusForbidden, nil)(w, req) ||
						registrytest.Cut(part, len(part)-1000)(w, req)
				})
		}
	}
	r := smallDisk(t, "24m")
	if _, err := r.pull(t, reg.Host+"/x:broken", &tank.PullOptions{NoRootfs: true}); err == nil {
		t.Fatal("the pull of the broken image succeeded")
	}
	held := 0
	for _, name := range r.left(t) {
		if strings.HasPrefix(name, "ingest/") || strings.HasPrefix(name, "blobs/") {
			held++
		}
	}
	if held < 3 {
		t.Fatalf("the failed pull left only %d blobs", held)
	}
	_, err := r.pull(t, reg.Host+"/x:good", &tank.PullOptions{NoRootfs: true})
	must(t, err)
}

// TestFullDiskNamesPulls shows that the error for a full disk names what other pulls hold there.
func TestFullDiskNamesPulls(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	for tag, mib := range map[string]int{"held": 2, "large": 30} {
		layer, id := noise(t, reg, mib)
		reg.Image(tag, platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{id})
		if tag == "held" {
			reg.Fault = registrytest.On(layer.Digest.String(), func(w http.ResponseWriter, req *http.Request) bool {
				_, _ = w.Write(make([]byte, 1<<20))
				w.(http.Flusher).Flush()
				<-req.Context().Done()
				return true
			})
		}
	}
	r := smallDisk(t, "24m")
	r.with(t, func(tk *tank.Tank) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		arrived, ended := make(chan struct{}, 100), make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = tk.Pull(ctx, reg.Host+"/x:held", &tank.PullOptions{NoRootfs: true, Progress: func(e tank.Event) {
				if e.Offset == 1<<20 {
					arrived <- struct{}{}
				}
			}})
		}()
		<-arrived
		_, err := tk.Pull(ctx, reg.Host+"/x:large", &tank.PullOptions{NoRootfs: true})
		if err == nil || !strings.Contains(err.Error(), "hold") ||
			!strings.Contains(err.Error(), "pull/"+reg.Host+"/x:held ") {
			t.Errorf("%v does not name the pull that holds space", err)
		}
		cancel()
		<-ended
	})
}

// TestSlowRegistry shows that a registry that trickles a layer does not delay an image with the
// same layer from another registry.
func TestSlowRegistry(t *testing.T) {
	t.Parallel()
	good, evil := registrytest.New(t), registrytest.New(t)
	layer, id := noise(t, good, 1)
	good.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{id})
	evil.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{id})
	began := make(chan struct{}, 100)
	evil.Fault = registrytest.On(layer.Digest.String(), func(w http.ResponseWriter, req *http.Request) bool {
		began <- struct{}{}
		return registrytest.Drip(make([]byte, layer.Size), 100*time.Millisecond)(w, req)
	})
	r := newRoot(t, true)
	r.with(t, func(tk *tank.Tank) {
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		slow := make(chan error, 1)
		go func() {
			_, err := tk.Pull(ctx, evil.Host+"/x:1", nil)
			slow <- err
		}()
		<-began
		_, err := tk.Pull(ctx, good.Host+"/x:1", nil)
		must(t, err)
		must(t, <-slow) // its layer has come from the other registry
	})
}

// TestBodyWithoutEnd shows that a pull reads no more of a layer than its descriptor announces.
func TestBodyWithoutEnd(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	layer, id := noise(t, reg, 1)
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{id})
	sent := 0
	reg.Fault = registrytest.On(layer.Digest.String(), func(w http.ResponseWriter, req *http.Request) bool {
		w.WriteHeader(http.StatusOK) // chunked
		for chunk := make([]byte, 64<<10); sent < 64<<20; sent += len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return true
			}
		}
		return true
	})
	r := newRoot(t, false)
	if _, err := r.pull(t, reg.Host+"/x:1", nil); !errdefs.IsDataLoss(err) {
		t.Errorf("pull: %v", err)
	}
	if sent == 64<<20 {
		t.Error("the pull read the whole body")
	}
	if left := r.left(t); len(left) > 2 { // manifest and config may stay for a resumed pull
		t.Errorf("left %v", left)
	}
}

// TestSlowDownloadOfContainerd shows that a slow download of a layer by containerd does not delay a
// pull of the same layer, although the layer was announced and its unpack follows the slow
// download.
func TestSlowDownloadOfContainerd(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	reg := registrytest.New(t)
	blob, id := noise(t, reg, 1)
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{blob}, []digest.Digest{id})
	r := newRoot(t, true)
	r.with(t, func(tk *tank.Tank) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		tk.Snapshots().Layers().Announce([]layer.Pair{{Blob: blob, DiffID: id}})
		ref := "default/1/layer-" + blob.Digest.String()
		w, err := tk.Content().For(metadata.Containerd).Writer(ctx,
			content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Size: blob.Size}))
		must(t, err)
		_, err = w.Write([]byte("these are not the bytes of the layer"))
		must(t, err)
		time.Sleep(100 * time.Millisecond) // until the unpack follows the download
		began := time.Now()
		_, err = tk.Pull(ctx, reg.Host+"/x:1", nil)
		must(t, err)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the pull took %v", took)
		}
		must(t, w.Close())
		must(t, tk.Content().For(metadata.Containerd).Abort(ctx, ref))
	})
}
