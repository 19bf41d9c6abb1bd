package tank_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// foreignImage is an image that another program, such as skopeo, added to a root: its blobs and its
// entry of index.json.
type foreignImage struct {
	dir   string
	entry ocispec.Descriptor
	blobs []digest.Digest
}

func (f *foreignImage) blob(t *testing.T, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(b)
	must(t, os.MkdirAll(filepath.Join(f.dir, "blobs", "sha256"), 0o700))
	must(t, os.WriteFile(filepath.Join(f.dir, "blobs", "sha256", d.Encoded()), b, 0o644))
	f.blobs = append(f.blobs, d)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// addForeign adds an index of one image to a root.
func addForeign(t *testing.T, dir, name string) *foreignImage {
	t.Helper()
	f := &foreignImage{dir: dir}
	tar := Tar(t, F("which", name))
	image := ocispec.Image{Platform: config("amd64", "")}
	image.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(tar)}}
	manifest := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    f.blob(t, ocispec.MediaTypeImageConfig, registrytest.JSON(image)),
		Layers:    []ocispec.Descriptor{f.blob(t, ocispec.MediaTypeImageLayerGzip, Gzip(t, tar))},
	}
	manifest.SchemaVersion = 2
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		f.blob(t, ocispec.MediaTypeImageManifest, registrytest.JSON(manifest)),
	}}
	index.SchemaVersion = 2
	f.entry = f.blob(t, ocispec.MediaTypeImageIndex, registrytest.JSON(index))
	f.entry.Annotations = map[string]string{ocispec.AnnotationRefName: name, "created.by": "another program"}
	editIndex(t, dir, func(i *ocispec.Index) { i.Manifests = append(i.Manifests, f.entry) })
	return f
}

func editIndex(t *testing.T, dir string, edit func(*ocispec.Index)) {
	t.Helper()
	index := indexOf(t, dir)
	edit(&index)
	must(t, os.WriteFile(filepath.Join(dir, "index.json"), registrytest.JSON(index), 0o644))
}

func indexOf(t *testing.T, dir string) (index ocispec.Index) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &index))
	return index
}

// stays checks that index.json has the entry once and that all its blobs exist.
func (f *foreignImage) stays(t *testing.T, after string) {
	t.Helper()
	n := 0
	for _, m := range indexOf(t, f.dir).Manifests {
		if m.Digest == f.entry.Digest && bytes.Equal(registrytest.JSON(m), registrytest.JSON(f.entry)) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s: index.json has the entry %d times: %+v", after, n, indexOf(t, f.dir))
	}
	for _, d := range f.blobs {
		if _, err := os.Stat(filepath.Join(f.dir, "blobs", "sha256", d.Encoded())); err != nil {
			t.Errorf("%s: %v", after, err)
		}
	}
}

// TestForeignEntryStays runs everything that writes index.json or deletes blobs in a root with an
// entry of another program. The entry and its blobs stay, and Tank does not serve them.
func TestForeignEntryStays(t *testing.T) {
	t.Parallel()
	for _, daemon := range []bool{false, true} {
		reg := registrytest.New(t)
		push(t, reg, "1", base)
		push(t, reg, "2", base, []Item{F("d/n", "3")})
		r, ctx := newRoot(t, daemon), context.Background()
		_, err := r.pull(t, reg.Host+"/x:1", nil)
		must(t, err)
		const name = "docker.io/library/foreign:latest"
		f := addForeign(t, r.dir, name)
		r.with(t, func(*tank.Tank) { f.stays(t, "open") })
		r.with(t, func(tk *tank.Tank) {
			for _, step := range []struct {
				name string
				do   func() error
			}{
				{"pull", func() error { return second(tk.Pull(ctx, reg.Host+"/x:2", nil)) }},
				{"gc", func() error { return second(tk.GC(ctx)) }},
				{"check", func() error { return tk.Check(ctx, func(f tank.Fault) { t.Error(f) }) }},
				{"rm", func() error { return tk.Remove(ctx, reg.Host+"/x:2") }},
				{"gc of blobs", func() error { return second(tk.GC(ctx)) }},
				{"release", func() error { return second(tk.Release(ctx, "image/"+reg.Host+"/x:1", nil)) }},
				{"pull again", func() error { return second(tk.Pull(ctx, reg.Host+"/x:1", nil)) }},
			} {
				if err := step.do(); err != nil {
					t.Errorf("%s: %v", step.name, err)
				}
				f.stays(t, step.name)
			}
			if infos, err := tk.Images(ctx); err != nil || len(infos) != 1 {
				t.Errorf("images: %+v, %v", infos, err)
			}
			_, err := tk.Pull(ctx, name, &tank.PullOptions{Offline: true})
			if _, size := tk.Content().Size(f.entry.Digest); !errdefs.IsNotFound(err) || size {
				t.Errorf("the image of another program is served: %v", err)
			}
			if _, err := tk.Inspect(ctx, "foreign@"+f.entry.Digest.String()); !errdefs.IsNotFound(err) {
				t.Errorf("inspect: %v", err)
			}
		})
		_, err = tank.Rebuild(ctx, r.dir, nil)
		must(t, err)
		f.stays(t, "rebuild")
		must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
		found, err := tank.Rebuild(ctx, r.dir, nil)
		must(t, err)
		f.stays(t, "rebuild without a database")
		r.with(t, func(tk *tank.Tank) {
			if infos, err := tk.Images(ctx); err != nil || len(infos) != 1 || infos[0].Ref != reg.Host+"/x:1" {
				t.Errorf("images after a rebuild: %+v, %v", infos, err)
			}
			for _, h := range []string{found.Kept, string(metadata.Containerd)} {
				if _, err := tk.Release(ctx, h, &tank.ReleaseOptions{Force: true}); err != nil &&
					!errdefs.IsNotFound(err) {
					t.Error(err)
				}
			}
			f.stays(t, "release of what was rebuilt")
			// The program that added the entry removes it.
			editIndex(t, r.dir, func(i *ocispec.Index) {
				i.Manifests = slices.DeleteFunc(i.Manifests,
					func(d ocispec.Descriptor) bool { return d.Digest == f.entry.Digest })
			})
			must(t, second(tk.GC(ctx)))
			for _, d := range f.blobs {
				if _, err := os.Stat(filepath.Join(r.dir, "blobs", "sha256", d.Encoded())); !errors.Is(err,
					os.ErrNotExist) {
					t.Errorf("blob %s is kept without an entry: %v", d, err)
				}
			}
		})
	}
}

// TestForeignEntryInDaemon shows that the background sweep after a deletion by containerd keeps the
// blobs of an entry that another program added while the daemon ran.
func TestForeignEntryInDaemon(t *testing.T) {
	t.Parallel()
	r, ctx := newRoot(t, true), context.Background()
	r.with(t, func(tk *tank.Tank) {
		f := addForeign(t, r.dir, "foreign")
		_, _, desc := layerOf(t, F("x", "1"))
		unpackAs(t, tk, []Item{F("x", "1")})
		view := tk.Content().For(metadata.Containerd)
		must(t, view.Delete(ctx, desc.Digest))
		for range 100 {
			if _, err := os.Stat(tk.Content().Path(desc.Digest)); errors.Is(err, os.ErrNotExist) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if _, err := os.Stat(tk.Content().Path(desc.Digest)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the blob of containerd was not swept: %v", err)
		}
		f.stays(t, "sweep")
	})
}

// TestForeignName gives the entry of another program the name of a pulled image. The record decides
// which image has the name, and the other entry stays without a name.
func TestForeignName(t *testing.T) {
	t.Parallel()
	for _, steal := range []string{"beside", "instead", "as skopeo"} {
		reg := registrytest.New(t)
		push(t, reg, "1", base)
		r, ref, ctx := newRoot(t, false), reg.Host+"/x:1", context.Background()
		img, err := r.pull(t, ref, nil)
		must(t, err)
		editIndex(t, r.dir, func(i *ocispec.Index) {
			switch steal {
			case "instead":
				i.Manifests = nil
			case "as skopeo": // skopeo removes the name from the former entry
				delete(i.Manifests[0].Annotations, ocispec.AnnotationRefName)
			}
		})
		f := addForeign(t, r.dir, ref)
		lost := func(with string) {
			delete(f.entry.Annotations, ocispec.AnnotationRefName)
			f.stays(t, steal+with)
			if refs, _ := layoutRefs(t, r.dir); !slices.Equal(refs, []string{ref, ""}) {
				t.Errorf("%s%s: index.json has %q", steal, with, refs)
			}
			again, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
			if err != nil || again.Digest != img.Digest {
				t.Errorf("%s%s: %+v, %v", steal, with, again, err)
			}
		}
		if steal == "as skopeo" { // the name is known also without the database
			must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
			_, err := tank.Rebuild(ctx, r.dir, nil)
			must(t, err)
		}
		r.with(t, func(*tank.Tank) {})
		lost("")
		r.with(t, func(tk *tank.Tank) { must(t, second(tk.GC(ctx))) })
		lost(" and gc")
	}
}

// TestForeignContent pulls an image although another program left a blob with other content under
// the digest of one of its blobs and named the blob in an entry.
func TestForeignContent(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	layer := digest.FromBytes(Gzip(t, Tar(t, base...)))
	r := newRoot(t, false)
	r.with(t, func(*tank.Tank) {})
	must(t, os.WriteFile(filepath.Join(r.dir, "blobs", "sha256", layer.Encoded()), []byte("evil"), 0o644))
	editIndex(t, r.dir, func(i *ocispec.Index) {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: layer, Size: 4}
		i.Manifests = append(i.Manifests, d)
	})
	img, err := r.pull(t, reg.Host+"/x:1", nil)
	must(t, err)
	if got := list(t, img.Rootfs); !slices.Equal(got, wantBase) {
		t.Errorf("rootfs %q", got)
	}
}

// TestForeignUnknown shows that a sweep deletes no unrecorded blob if it cannot read which blobs an
// entry needs.
func TestForeignUnknown(t *testing.T) {
	t.Parallel()
	r, ctx := newRoot(t, false), context.Background()
	r.with(t, func(tk *tank.Tank) {
		f := addForeign(t, r.dir, "foreign")
		manifest := filepath.Join(r.dir, "blobs", "sha256", f.blobs[2].Encoded())
		must(t, os.Rename(manifest, manifest+".real"))
		must(t, os.Symlink(manifest+".real", manifest))
		if _, err := tk.GC(ctx); err == nil || !strings.Contains(err.Error(), f.entry.Digest.String()) {
			t.Errorf("gc: %v", err)
		}
		must(t, os.Rename(manifest+".real", manifest))
		must(t, second(tk.GC(ctx)))
		f.stays(t, "gc")
	})
}

// TestUnreadableIndex shows that an unreadable index.json is written again and a copy of it is
// kept.
func TestUnreadableIndex(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	x := digest.FromString("x").String()
	for name, text := range map[string]string{
		"cut":                `{"schemaVersion":2,"manifests":[{"digest":"` + x + `","annotations":{}},{"dig`,
		"cut, with spaces":   "{\n  \"manifests\" : [\n    {\"digest\": \"" + x + "\"},\n    {\"dig",
		"a number as a text": `{"schemaVersion": "2", "manifests": [{"digest":"` + x + `"}], "annotations": {"a": 1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t, false)
			_, err := r.pull(t, reg.Host+"/x:1", nil)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(r.dir, "index.json"), []byte(text), 0o600))
			r.with(t, func(*tank.Tank) {})
			if refs, _ := layoutRefs(t, r.dir); !slices.Equal(refs, []string{reg.Host + "/x:1", ""}) {
				t.Errorf("index.json has the names %q", refs)
			}
			copies, err := filepath.Glob(filepath.Join(r.dir, "lost", "*", "index.json"))
			if err != nil || len(copies) != 1 {
				t.Fatalf("copies %q, %v", copies, err)
			}
			if b, err := os.ReadFile(copies[0]); string(b) != text {
				t.Errorf("copy %q, %v", b, err)
			}
		})
	}
}
