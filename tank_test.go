package tank_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// push pushes an image of these layers to the registry.
func push(t *testing.T, reg *registrytest.Registry, tag string, layers ...[]Item) {
	t.Helper()
	var blobs []ocispec.Descriptor
	var diffIDs []digest.Digest
	for _, items := range layers {
		tar := Tar(t, items...)
		blobs = append(blobs, reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar)))
		diffIDs = append(diffIDs, digest.FromBytes(tar))
	}
	reg.Image(tag, platforms.DefaultSpec(), blobs, diffIDs)
}

// root is a root that each use opens again. The end of the test checks it.
type root struct {
	dir    string
	daemon bool
}

func newRoot(t *testing.T, daemon bool) *root {
	t.Helper()
	r := &root{filepath.Join(t.TempDir(), "root"), daemon}
	t.Cleanup(func() {
		r.with(t, func(tk *tank.Tank) { must(t, tk.Check(context.Background(), func(f tank.Fault) { t.Error(f) })) })
	})
	return r
}

func (r *root) with(t *testing.T, fn func(*tank.Tank)) {
	t.Helper()
	tk, err := tank.Open(r.dir, &tank.Options{Daemon: r.daemon})
	must(t, err)
	defer func() { must(t, tk.Close()) }()
	fn(tk)
}

func (r *root) pull(t *testing.T, ref string, opts *tank.PullOptions) (img *tank.Image, err error) {
	t.Helper()
	r.with(t, func(tk *tank.Tank) { img, err = tk.Pull(context.Background(), ref, opts) })
	return img, err
}

// left lists what is in the pools of the root, apart from what waits for deletion.
func (r *root) left(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, dir := range []string{"blobs", "ingest", "layers", "rootfs", "snapshots", "staging"} {
		must(t, filepath.WalkDir(filepath.Join(r.dir, dir), func(path string, e fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(r.dir, path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && strings.HasPrefix(filepath.Base(rel), ".") {
				if err == nil && e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if depth := strings.Count(rel, "/"); err == nil && (depth == 2 || depth == 1 && e.Name() != "sha256") {
				names = append(names, rel)
				if e.IsDir() {
					return fs.SkipDir
				}
			}
			return err
		}))
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// base is the layer of most tests. All its files belong to root, so that the listing does not
// depend on the user that runs the test.
var base = []Item{D("d").Mode(0o750), F("d/a", "1"), F("b", "2"), H("c", "b")}

var wantBase = []string{`b file "2"`, `c file "2" = b`, "d dir 0750", `d/a file "1"`}

func list(t *testing.T, dir string) []string {
	t.Helper()
	lines := List(t, dir)
	if os.Geteuid() != 0 {
		own := fmt.Sprintf(" %d:%d", os.Geteuid(), os.Getegid())
		for i := range lines {
			lines[i] = strings.Replace(lines[i], own, "", 1)
		}
		lines = slices.DeleteFunc(lines, func(l string) bool { return l == ". dir @0" })
	}
	return lines
}

func TestPull(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			reg := registrytest.New(t)
			ref := reg.Host + "/x:1"
			push(t, reg, "1", base, []Item{W("d/.wh.a"), F("d/n", "3")})
			want := []string{`b file "2"`, `c file "2" = b`, "d dir 0750", `d/n file "3"`}
			r := newRoot(t, daemon)

			first, err := r.pull(t, ref, nil)
			must(t, err)
			if got := list(t, first.Rootfs); !slices.Equal(got, want) {
				t.Errorf("rootfs:\n%s", strings.Join(got, "\n"))
			}
			if first.Cached || first.Ref != ref || !json.Valid(first.Config) {
				t.Errorf("first: %+v", first)
			}
			before := reg.Count("/blobs/")
			again, err := r.pull(t, ref, nil)
			must(t, err)
			if !again.Cached || again.Rootfs != first.Rootfs || reg.Count("/blobs/") != before {
				t.Errorf("again: %+v, requests %q", again, reg.Requests())
			}
			requests := len(reg.Requests())
			offline, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
			must(t, err)
			if offline.Rootfs != first.Rootfs || len(reg.Requests()) != requests {
				t.Errorf("offline: %+v", offline)
			}
		})
	}
}

func TestMovedTag(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			reg := registrytest.New(t)
			ref := reg.Host + "/x:1"
			r := newRoot(t, daemon)
			push(t, reg, "1", base)
			old, err := r.pull(t, ref, nil)
			must(t, err)
			push(t, reg, "1", base, []Item{F("n", "3")})
			requests := reg.Count("/blobs/")
			now, err := r.pull(t, ref, nil)
			must(t, err)
			if n := reg.Count("/blobs/") - requests; n != 2 { // config and the new layer
				t.Errorf("%d blobs were fetched", n)
			}
			if got := list(t, now.Rootfs); !slices.Equal(got, append(slices.Clone(wantBase), `n file "3"`)) {
				t.Errorf("rootfs:\n%s", strings.Join(got, "\n"))
			}
			if got := list(t, old.Rootfs); !slices.Equal(got, wantBase) {
				t.Errorf("the old rootfs:\n%s", strings.Join(got, "\n"))
			}
			r.with(t, func(tk *tank.Tank) {
				g, err := tk.GC(context.Background())
				must(t, err)
				if g.Images != 1 {
					t.Errorf("gc: %+v", g)
				}
			})
			if _, err := os.Stat(old.Rootfs); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("old rootfs after gc: %v", err)
			}
		})
	}
}

func TestNothingIsLeft(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			reg := registrytest.New(t)
			r := newRoot(t, daemon)
			push(t, reg, "1", base, []Item{W("d/.wh.a")})
			push(t, reg, "2", base)
			for _, tag := range []string{"1", "2"} {
				_, err := r.pull(t, reg.Host+"/x:"+tag, nil)
				must(t, err)
			}
			r.with(t, func(tk *tank.Tank) {
				ctx := context.Background()
				must(t, tk.Remove(ctx, reg.Host+"/x:1"))
				_, err := tk.GC(ctx)
				must(t, err)
				other, err := tk.Pull(ctx, reg.Host+"/x:2", &tank.PullOptions{Offline: true})
				must(t, err)
				if got := list(t, other.Rootfs); !slices.Equal(got, wantBase) {
					t.Errorf("the other image:\n%s", strings.Join(got, "\n"))
				}
				must(t, tk.Remove(ctx, reg.Host+"/x:2"))
				if err := tk.Remove(ctx, reg.Host+"/x:2"); !errdefs.IsNotFound(err) {
					t.Errorf("second removal: %v", err)
				}
				_, err = tk.GC(ctx)
				must(t, err)
			})
			if left := r.left(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestNotCached(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	offline := &tank.PullOptions{Offline: true}
	_, err := r.pull(t, ref, offline)
	var nc *tank.NotCached
	if !errdefs.IsNotFound(err) || !errors.As(err, &nc) || nc.Missing != "image" || nc.Ref != ref {
		t.Errorf("offline pull of an unknown image: %v", err)
	}
	_, err = r.pull(t, ref, nil)
	must(t, err)
	if _, err := r.pull(t, ref, &tank.PullOptions{Offline: true, Platform: "linux/s390x"}); !errdefs.IsNotFound(err) ||
		!strings.Contains(err.Error(), "s390x") {
		t.Errorf("another platform: %v", err)
	}
	var blob string
	r.with(t, func(tk *tank.Tank) {
		images, err := tk.Images(context.Background())
		must(t, err)
		blob = tk.Content().Path(images[0].Manifest)
	})
	data, err := os.ReadFile(blob)
	must(t, err)
	must(t, os.Remove(blob))
	if _, err := r.pull(t, ref, offline); !errdefs.IsNotFound(err) ||
		!strings.Contains(err.Error(), filepath.Base(blob)) {
		t.Errorf("blob without a file: %v", err)
	}
	must(t, os.WriteFile(blob, data, 0o400))
}

// TestBrokenRootfs shows that a provisional rootfs is compared with its seal before it is served.
func TestBrokenRootfs(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host + "/x:1"
	push(t, reg, "1", base)
	r := newRoot(t, false)
	img, err := r.pull(t, ref, &tank.PullOptions{NoSync: true})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(img.Rootfs, "b"), nil, 0o644)) // as a power cut leaves it
	again, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
	must(t, err)
	if got := list(t, again.Rootfs); !slices.Equal(got, wantBase) {
		t.Errorf("rootfs:\n%s", strings.Join(got, "\n"))
	}
}

func TestWrongDiffID(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		reg := registrytest.New(t)
		push(t, reg, "good", base)
		good := digest.FromBytes(Tar(t, base...))
		evil := reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, Tar(t, F("evil", "1"))))
		reg.Image("bad", platforms.DefaultSpec(), []ocispec.Descriptor{evil}, []digest.Digest{good})
		r := newRoot(t, daemon)
		_, err := r.pull(t, reg.Host+"/x:good", nil)
		must(t, err)
		if _, err := r.pull(t, reg.Host+"/x:bad", nil); !errdefs.IsFailedPrecondition(err) ||
			!strings.Contains(err.Error(), good.String()) {
			t.Errorf("daemon=%v: %v", daemon, err)
		}
	}
}

func TestOwners(t *testing.T) {
	r := newRoot(t, false)
	r.with(t, func(*tank.Tank) {
		if _, err := tank.Open(r.dir, nil); !errdefs.IsUnavailable(err) {
			t.Errorf("second owner: %v", err)
		}
	})
}

// TestLayersAreKept shows that the root of a daemon unpacks a layer once for all images.
func TestLayersAreKept(t *testing.T) {
	reg := registrytest.New(t)
	r := newRoot(t, true)
	push(t, reg, "1", base, []Item{F("n", "1")})
	push(t, reg, "2", []Item{F("m", "1")}, base)
	_, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{NoRootfs: true})
	must(t, err)
	count := func() int {
		n, err := os.ReadDir(filepath.Join(r.dir, "layers"))
		must(t, err)
		return len(n)
	}
	if count() != 2 {
		t.Fatalf("%d layers", count())
	}
	_, err = r.pull(t, reg.Host+"/x:2", &tank.PullOptions{NoRootfs: true})
	must(t, err)
	if count() != 3 {
		t.Errorf("%d layers after an image that has one of them", count())
	}
}

// TestRefresh shows that a refresh downloads everything again, repairs a damaged rootfs, keeps an
// intact rootfs, and keeps the old image if it fails.
func TestRefresh(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			reg := registrytest.New(t)
			ref := reg.Host + "/x:1"
			push(t, reg, "1", base)
			r := newRoot(t, daemon)
			refresh := &tank.PullOptions{Refresh: true}
			first, err := r.pull(t, ref, nil)
			must(t, err)
			inode := inodeOf(t, first.Rootfs)
			blobs := reg.Count("/blobs/")
			again, err := r.pull(t, ref, refresh)
			must(t, err)
			if n := reg.Count("/blobs/") - blobs; again.Cached || n != 2 || inodeOf(t, again.Rootfs) != inode {
				t.Errorf("refresh of an intact image: %+v, %d blobs", again, n)
			}

			var config string
			r.with(t, func(tk *tank.Tank) {
				d, err := tk.Inspect(context.Background(), ref)
				must(t, err)
				config = tk.Content().Path(d.Platforms[0].Layers[0].Digest)
			})
			must(t, os.Chmod(config, 0o600))
			must(t, os.WriteFile(config, make([]byte, size(t, config)), 0o600))
			must(t, os.WriteFile(filepath.Join(first.Rootfs, "b"), []byte("broken"), 0o644))
			mended, err := r.pull(t, ref, refresh)
			must(t, err)
			if got := list(t, mended.Rootfs); !slices.Equal(got, wantBase) {
				t.Errorf("repaired rootfs:\n%s", strings.Join(got, "\n"))
			}

			reg.Fault = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/blobs/") {
					http.Error(w, "", http.StatusNotFound)
					return true
				}
				return false
			}
			if _, err := r.pull(t, ref, refresh); !errdefs.IsNotFound(err) {
				t.Errorf("refresh without blobs: %v", err)
			}
			offline, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
			must(t, err)
			if got := list(t, offline.Rootfs); !slices.Equal(got, wantBase) {
				t.Errorf("after a failed refresh:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Ino
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Size()
}

// TestRebuild shows that a rebuild recovers from the loss of the database.
func TestRebuild(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		for _, damage := range []struct {
			testName string
			do       func(path string) error
		}{
			{"missing", os.Remove},
			{"garbage", func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<16), 0o600) }},
			{"intact", func(string) error { return nil }},
		} {
			t.Run(fmt.Sprintf("%s daemon=%v", damage.testName, daemon), func(t *testing.T) {
				reg := registrytest.New(t)
				push(t, reg, "1", base)
				push(t, reg, "2", base, []Item{F("d/n", "3")})
				r := newRoot(t, daemon)
				one, err := r.pull(t, reg.Host+"/x:1", nil)
				must(t, err)
				two, err := r.pull(t, reg.Host+"/x:2", nil)
				must(t, err)
				must(t, os.WriteFile(filepath.Join(two.Rootfs, "b"), nil, 0o644)) // does not match the seal
				must(t, damage.do(filepath.Join(r.dir, "metadata.db")))
				rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
				must(t, err)
				if rebuilt.Images != 2 || rebuilt.Rootfs != 1 {
					t.Errorf("rebuilt %+v", rebuilt)
				}
				requests := len(reg.Requests())
				for ref, was := range map[string]*tank.Image{reg.Host + "/x:1": one, reg.Host + "/x:2": two} {
					img, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
					must(t, err)
					if img.Rootfs != was.Rootfs {
						t.Errorf("%s: rootfs %s, was %s", ref, img.Rootfs, was.Rootfs)
					}
				}
				if got := list(t, two.Rootfs); !slices.Equal(got, append(slices.Clone(wantBase), `d/n file "3"`)) {
					t.Errorf("assembled again:\n%s", strings.Join(got, "\n"))
				}
				if len(reg.Requests()) != requests {
					t.Error("the rebuild made requests")
				}
			})
		}
	}
}
