package tank_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestPinnedAfterTheTagMoved shows that gc keeps an image that was pulled as REF@DIGEST after its
// tag had moved.
func TestPinnedAfterTheTagMoved(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	first, err := r.pull(t, ref, nil)
	must(t, err)
	push(t, reg, "1", []Item{F("new", "1")})
	_, err = r.pull(t, ref, nil)
	must(t, err)
	pinned := ref + "@" + first.Digest.String()
	img, err := r.pull(t, pinned, nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) { _, err = tk.GC(context.Background()); must(t, err) })
	if _, err := os.Stat(img.Rootfs); err != nil {
		t.Errorf("rootfs that the pull returned: %v", err)
	}
	if _, err := r.pull(t, pinned, &tank.PullOptions{Offline: true}); err != nil {
		t.Errorf("offline pull by digest: %v", err)
	}
}

func layoutRefs(t *testing.T, dir string) (refs []string, missing []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	var index ocispec.Index
	must(t, json.Unmarshal(b, &index))
	for _, m := range index.Manifests {
		refs = append(refs, m.Annotations[ocispec.AnnotationRefName])
		if _, err := os.Stat(filepath.Join(dir, "blobs", "sha256", m.Digest.Encoded())); err != nil {
			missing = append(missing, m.Digest.String())
		}
	}
	return refs, missing
}

// TestLayoutAfterGC shows that gc removes the entries of untagged images from index.json.
func TestLayoutAfterGC(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	_, err := r.pull(t, ref, nil)
	must(t, err)
	push(t, reg, "1", []Item{F("new", "1")})
	_, err = r.pull(t, ref, nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) { _, err = tk.GC(context.Background()); must(t, err) })
	if refs, missing := layoutRefs(t, r.dir); len(missing) > 0 {
		t.Errorf("index.json of %q names blobs that are gone: %q", refs, missing)
	}
}

// TestLayoutAfterCrash shows that a cached pull writes index.json if a crash prevented that after
// the image was recorded.
func TestLayoutAfterCrash(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	_, err := r.pull(t, ref, nil)
	must(t, err)
	// the state before the pull wrote index.json
	must(t, errors.Join(os.Remove(filepath.Join(r.dir, "index.json")), os.Remove(filepath.Join(r.dir, "oci-layout"))))
	_, err = r.pull(t, ref, nil)
	must(t, err)
	if _, err := os.Stat(filepath.Join(r.dir, "index.json")); err != nil {
		t.Error(err)
	}
}

// TestRemoveDuringCachedPull removes an image between the moments when a pull reads its record and
// when it holds the rootfs. The pull leaves no hold of the removed image.
func TestRemoveDuringCachedPull(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	push(t, reg, "2", base)
	r := newRoot(t, true)
	_, err := r.pull(t, reg.Host+"/x:1", nil)
	must(t, err)
	_, err = r.pull(t, reg.Host+"/x:2", nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) {
		var once sync.Once
		_, err := tk.Pull(context.Background(), reg.Host+"/x:1", &tank.PullOptions{Log: func(string) {
			once.Do(func() { must(t, tk.Remove(context.Background(), reg.Host+"/x:1")) })
		}})
		t.Logf("pull: %v", err)
		must(t, tk.Remove(context.Background(), reg.Host+"/x:2"))
		_, err = tk.GC(context.Background())
		must(t, err)
	})
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left after gc without images: %q", left)
	}
}

// TestGCDuringResolve shows that a pull of a known image succeeds although rm and gc delete it
// while the pull resolves the reference.
func TestGCDuringResolve(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, true)
	_, err := r.pull(t, ref, nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) {
		var once sync.Once
		_, err := tk.Pull(context.Background(), ref, &tank.PullOptions{Log: func(string) {
			once.Do(func() {
				must(t, tk.Remove(context.Background(), ref))
				_, err := tk.GC(context.Background())
				must(t, err)
			})
		}})
		if err != nil {
			t.Errorf("online pull: %v", err)
		}
	})
}

// TestSyncAfterNoSync shows that a pull without --no-sync makes durable what an earlier pull with
// --no-sync left provisional.
func TestSyncAfterNoSync(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	r.with(t, func(tk *tank.Tank) {
		_, err := tk.Pull(context.Background(), ref, &tank.PullOptions{NoSync: true})
		must(t, err)
		_, err = tk.Pull(context.Background(), ref, nil)
		must(t, err)
		time.Sleep(500 * time.Millisecond)
	})
	db, err := metadata.Open(filepath.Join(r.dir, "metadata.db"), nil)
	must(t, err)
	defer db.Close()
	must(t, db.View(func(tx *metadata.Tx) error {
		for _, d := range tx.Keys(metadata.KindRootfs, "", -1) {
			if rec, err := tx.Rootfs(digest.Digest(d)); err != nil || !rec.Durable {
				t.Errorf("rootfs %s is provisional after a pull that syncs (%v)", d, err)
			}
		}
		return nil
	}))
}

// TestHostsFilesCase shows that the paths in hosts.toml are checked whatever the case of their
// keys.
func TestHostsFilesCase(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	r := newRoot(t, false)
	for _, key := range []string{"ca", "CA", "Ca"} {
		_, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{HostsFiles: map[string][]byte{
			reg.Host + "/hosts.toml": []byte("server = \"http://" + reg.Host + "\"\n" + key + " = \"/etc/passwd\"\n"),
		}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", key, err)
		} else {
			t.Logf("%s: %v", key, err)
		}
	}
}

// TestNoPlatform shows that an offline pull finds an image whose config names no platform.
func TestNoPlatform(t *testing.T) {
	reg := registrytest.New(t)
	tar := Tar(t, base...)
	reg.Image("1", ocispec.Platform{}, []ocispec.Descriptor{reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar))},
		[]digest.Digest{digest.FromBytes(tar)})
	r := newRoot(t, false)
	_, err := r.pull(t, reg.Host+"/x:1", nil)
	must(t, err)
	if _, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{Offline: true}); err != nil {
		t.Error(err)
	}
}

// TestNoRootfsThenRootfs pulls an image without and then with a rootfs. In a private root, gc then
// deletes the layers.
func TestNoRootfsThenRootfs(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	push(t, reg, "2", base, []Item{F("x", "1")})
	r := newRoot(t, false)
	_, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{NoRootfs: true})
	must(t, err)
	_, err = r.pull(t, reg.Host+"/x:1", nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) { _, err = tk.GC(context.Background()); must(t, err) })
	if n, err := os.ReadDir(filepath.Join(r.dir, "layers")); err != nil || len(n) > 0 {
		t.Errorf("layers beside a private root's rootfs: %v, %v", n, err)
	}
}

// TestRootfsOfAnotherReference shows that Images reports the rootfs of a reference that shares it
// with another reference.
func TestRootfsOfAnotherReference(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	push(t, reg, "2", base)
	r := newRoot(t, true)
	_, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{NoRootfs: true})
	must(t, err)
	_, err = r.pull(t, reg.Host+"/x:2", nil)
	must(t, err)
	img, err := r.pull(t, reg.Host+"/x:1", nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) {
		infos, err := tk.Images(context.Background())
		must(t, err)
		for _, i := range infos {
			if i.Rootfs != img.Rootfs {
				t.Errorf("%s: rootfs %q", i.Ref, i.Rootfs)
			}
		}
	})
}

// TestLeftoversOfAnOldDigest shows that gc deletes what a failed pull left once its tag names
// another image.
func TestLeftoversOfAnOldDigest(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base, []Item{F("one", "1")})
	bad := digest.FromBytes(Gzip(t, Tar(t, F("one", "1")))).String()
	reg.Fault = func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/"+bad) {
			time.Sleep(200 * time.Millisecond) // until the other layer has arrived
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	r := newRoot(t, false)
	if _, err := r.pull(t, ref, nil); err == nil {
		t.Fatal("the pull succeeded")
	}
	push(t, reg, "1", []Item{F("new", "1")})
	_, err := r.pull(t, ref, nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) { _, err = tk.GC(context.Background()); must(t, err) })
	n, err := os.ReadDir(filepath.Join(r.dir, "blobs", "sha256"))
	must(t, err)
	if len(n) != 3 {
		t.Errorf("%d blobs for an image of 3", len(n))
	}
	if l, err := os.ReadDir(filepath.Join(r.dir, "layers")); err != nil || len(l) > 0 {
		t.Errorf("layers %v, %v", l, err)
	}
}
