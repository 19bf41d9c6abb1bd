package content

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

func TestSweepBlobs(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(outside, []byte("outside"), 0o600))
	d := digest.FromString("unrecorded")
	for name, tc := range map[string]struct {
		plant func(t *testing.T, r *root)
		want  Stats
	}{
		"nothing":    {func(*testing.T, *root) {}, Stats{}},
		"unrecorded": {func(t *testing.T, r *root) { r.plant(d, "unrecorded") }, Stats{Blobs: 1, Bytes: 10}},
		"released": {func(t *testing.T, r *root) {
			put(t, r.For(bob), "released")
			must(t, r.For(bob).Delete(t.Context(), digest.FromString("released")))
		}, Stats{Blobs: 1, Bytes: 8}},
		"sha512": {func(t *testing.T, r *root) {
			d := digest.SHA512.FromString("512")
			must(t, os.Mkdir(filepath.Dir(r.Path(d)), 0o700))
			r.plant(d, "512")
		}, Stats{Blobs: 1, Bytes: 3}},
		"symlink":   {func(t *testing.T, r *root) { must(t, os.Symlink(outside, r.Path(d))) }, Stats{Blobs: 1}},
		"directory": {func(t *testing.T, r *root) { must(t, os.MkdirAll(r.Path(d)+"/sub", 0o700)) }, Stats{Blobs: 1}},
		"no digest": {func(t *testing.T, r *root) {
			must(t, os.WriteFile(filepath.Join(r.path, "blobs/sha256/README"), []byte("hi"), 0o600))
		}, Stats{Blobs: 1, Bytes: 2}},
		"linked algorithm": {func(t *testing.T, r *root) {
			must(t, os.Symlink(filepath.Dir(outside), filepath.Join(r.path, "blobs/sha384")))
		}, Stats{Blobs: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			keep := put(t, r.For(alice), "kept")
			tc.plant(t, r)
			stats, err := r.Sweep(t.Context())
			must(t, err)
			if stats != tc.want {
				t.Errorf("swept %+v, want %+v", stats, tc.want)
			}
			if names := r.names("blobs/sha256"); len(names) != 1 || names[0] != keep.Encoded() {
				t.Errorf("left %v", names)
			}
			if b, err := os.ReadFile(outside); err != nil || string(b) != "outside" {
				t.Errorf("outside: %q, %v", b, err)
			}
		})
	}
}

func TestSweepIngests(t *testing.T) {
	dead := metadata.PullHolder("dead")
	r := open(t, t.TempDir(), &Options{LiveHolder: func(h metadata.Holder) bool { return h == alice }})
	for h, refs := range map[metadata.Holder][]string{
		dead: {"closed", "open"}, alice: {"closed", "open"}, metadata.Containerd: {"closed", "open"},
	} {
		for _, ref := range refs {
			w := start(t, r.For(h), ref, ocispec.Descriptor{})
			write(t, w, "12345")
			if ref == "closed" {
				must(t, w.Close())
			}
		}
	}
	must(t, os.Mkdir(filepath.Join(r.path, "ingest/half"), 0o700)) // as a crash leaves it
	stats, err := r.Sweep(t.Context())
	must(t, err)
	if want := (Stats{Ingests: 2, Bytes: 5}); stats != want {
		t.Errorf("swept %+v, want %+v", stats, want)
	}
	for h, want := range map[metadata.Holder]int{dead: 1, alice: 2, metadata.Containerd: 2} {
		if sts, err := r.For(h).ListStatuses(t.Context()); err != nil || len(sts) != want {
			t.Errorf("%s has %v, %v", h, sts, err)
		}
	}
}

// TestCrash makes the state that a kill at each step leaves, and lets a later process continue.
func TestCrash(t *testing.T) {
	const data = "a blob that was almost there"
	d := digest.FromString(data)
	for name, tc := range map[string]struct {
		leave func(t *testing.T, r *root)
		again error
	}{
		"between rename and record": {func(t *testing.T, r *root) { r.plant(d, data) }, nil},
		"unrecorded bytes that are damaged": {func(t *testing.T, r *root) {
			r.plant(d, "a blob that was almost them!")
		}, nil},
		"between record and cleaning": {func(t *testing.T, r *root) {
			put(t, r.For(alice), data)
			w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
			must(t, w.Close())
			must(t, os.Remove(w.data()))
		}, errdefs.ErrAlreadyExists},
		"between release and sweep": {func(t *testing.T, r *root) {
			put(t, r.For(alice), data)
			must(t, r.For(alice).Delete(t.Context(), d))
		}, nil},
		"in a sweep": {func(t *testing.T, r *root) {
			r.plant(d, data)
			_, err := r.dir.Aside(r.Path(d))
			must(t, err)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			tc.leave(t, r)
			s := r.reopen(nil)
			hs := s.For(alice)
			_, err := hs.Info(t.Context(), d)
			if tc.again == nil {
				class(t, errdefs.IsNotFound, err)
			} else {
				must(t, err)
			}
			w := start(t, hs, "ref", ocispec.Descriptor{})
			write(t, w, data)
			if err := w.Commit(t.Context(), 0, d); errdefs.IsAlreadyExists(err) != (tc.again != nil) {
				t.Errorf("commit: %v", err)
			}
			if b, err := content.ReadBlob(t.Context(), hs, ocispec.Descriptor{Digest: d}); err != nil ||
				string(b) != data {
				t.Errorf("read %q, %v", b, err)
			}
			_, err = s.Sweep(t.Context())
			must(t, err)
			for dir, want := range map[string]int{"blobs/sha256": 1, "ingest": 0} {
				if names := r.names(dir); len(names) != want {
					t.Errorf("%s: %v", dir, names)
				}
			}
		})
	}
}

// TestOpenRefuses shows that Open fails if one of its directories is something else.
func TestOpenRefuses(t *testing.T) {
	for _, name := range []string{"blobs", "ingest", "blobs/sha256"} {
		dir := t.TempDir()
		r := open(t, dir, nil)
		must(t, os.RemoveAll(filepath.Join(dir, name)))
		must(t, os.Symlink(t.TempDir(), filepath.Join(dir, name)))
		_, err := Open(dir, r.db, nil)
		class(t, errdefs.IsFailedPrecondition, err)
		must(t, os.Remove(filepath.Join(dir, name)))
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
}

// TestModes shows the modes of files and directories.
func TestModes(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	d := put(t, r.For(alice), "x")
	for path, want := range map[string]os.FileMode{
		r.Path(d): 0o444, filepath.Dir(r.Path(d)): os.ModeDir | 0o700, r.path + "/blobs": os.ModeDir | 0o700,
		r.path + "/ingest": os.ModeDir | 0o700,
	} {
		fi, err := os.Lstat(path)
		must(t, err)
		if fi.Mode() != want {
			t.Errorf("%s: %v, want %v", path, fi.Mode(), want)
		}
	}
}

func TestClosed(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	must(t, r.Close())
	_, err := r.For(alice).Writer(t.Context(), content.WithRef("ref"))
	class(t, errdefs.IsFailedPrecondition, err)
}

// TestRace lets holders commit, find and release the same few blobs while sweeps run. A blob that
// was found must be readable until it is released.
func TestRace(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	end := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for i, h := range []metadata.Holder{alice, bob, metadata.Containerd} {
		wg.Go(func() {
			hs, rnd := r.For(h), rand.New(rand.NewSource(int64(i)))
			for n := 0; time.Now().Before(end); n++ {
				data := fmt.Sprint("blob ", rnd.Intn(3))
				d := digest.FromString(data)
				if _, err := hs.Info(t.Context(), d); errdefs.IsNotFound(err) {
					desc := ocispec.Descriptor{Size: int64(len(data)), Digest: d}
					err = content.WriteBlob(t.Context(), hs, "layer-"+d.String(), strings.NewReader(data), desc)
					if err != nil {
						t.Errorf("%s: write: %v", h, err)
						return
					}
				} else if err != nil {
					t.Errorf("%s: info: %v", h, err)
					return
				}
				if b, err := content.ReadBlob(t.Context(), hs, ocispec.Descriptor{Digest: d}); err != nil ||
					string(b) != data {
					t.Errorf("%s: read %q, %v", h, b, err)
					return
				}
				if err := hs.Delete(t.Context(), d); err != nil {
					t.Errorf("%s: delete: %v", h, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for time.Now().Before(end) {
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Errorf("sweep: %v", err)
				return
			}
		}
	})
	wg.Wait()
	_, err := r.Sweep(t.Context())
	must(t, err)
	if names := r.names("blobs/sha256"); len(names) > 0 {
		t.Errorf("left %v", names)
	}
}
