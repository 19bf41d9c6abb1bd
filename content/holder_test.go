package content

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
)

func TestHitIsHold(t *testing.T) {
	const data = "a blob"
	d := digest.FromString(data)
	for name, tc := range map[string]struct {
		hit   func(*testing.T, *HolderStore) error
		is    func(error) bool // class of the error; nil: no error
		holds bool
	}{
		"Info": {func(t *testing.T, hs *HolderStore) error {
			i, err := hs.Info(t.Context(), d)
			if i.Size != int64(len(data)) {
				t.Errorf("size %d", i.Size)
			}
			return err
		}, nil, true},
		"ReaderAt": {func(t *testing.T, hs *HolderStore) error {
			b, err := content.ReadBlob(t.Context(), hs, ocispec.Descriptor{Digest: d})
			if string(b) != data {
				t.Errorf("read %q", b)
			}
			return err
		}, nil, true},
		"Writer": {func(t *testing.T, hs *HolderStore) error {
			_, err := hs.Writer(t.Context(), content.WithRef("r"),
				content.WithDescriptor(ocispec.Descriptor{Digest: d}))
			return err
		}, errdefs.IsAlreadyExists, true},
		"Commit": {func(t *testing.T, hs *HolderStore) error {
			w := start(t, hs, "r", ocispec.Descriptor{})
			write(t, w, data)
			return w.Commit(t.Context(), 0, d)
		}, errdefs.IsAlreadyExists, true},
		"Update": {func(t *testing.T, hs *HolderStore) error {
			_, err := hs.Update(t.Context(), content.Info{Digest: d, Labels: map[string]string{"k": "v"}})
			return err
		}, nil, true},
		"Store.Size": {func(t *testing.T, hs *HolderStore) error {
			if n, ok := hs.s.Size(d); !ok || n != int64(len(data)) {
				t.Errorf("size %d, %t", n, ok)
			}
			return nil
		}, nil, false},
		"Store.ReaderAt": {func(t *testing.T, hs *HolderStore) error {
			ra, err := hs.s.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d})
			if err == nil {
				ra.Close()
			}
			return err
		}, nil, false},
		"Store.Open": {func(t *testing.T, hs *HolderStore) error {
			r, err := hs.s.Open(t.Context(), d)
			if err == nil {
				r.Close()
			}
			return err
		}, nil, false},
		"Walk": {func(t *testing.T, hs *HolderStore) error {
			return hs.Walk(t.Context(), func(i content.Info) error { return fmt.Errorf("sees %s", i.Digest) })
		}, nil, false},
		"Delete": {func(t *testing.T, hs *HolderStore) error { return hs.Delete(t.Context(), d) }, errdefs.IsNotFound,
			false},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			put(t, r.For(alice), data)
			for range 2 { // the second time nothing changes
				err := tc.hit(t, r.For(bob))
				if tc.is == nil {
					must(t, err)
				} else {
					class(t, tc.is, err)
				}
				want := []metadata.Holder{alice}
				if tc.holds {
					want = append(want, bob)
				}
				if got := r.holders(d); !slices.Equal(got, want) {
					t.Errorf("held by %v, not %v", got, want)
				}
			}
		})
	}
}

func TestDelete(t *testing.T) {
	garbage := make(chan digest.Digest, 10)
	r := open(t, t.TempDir(), &Options{OnGarbage: func(d digest.Digest) { garbage <- d }})
	a, b := r.For(alice), r.For(bob)
	d := put(t, a, "shared")
	_, err := b.Info(t.Context(), d)
	must(t, err)

	must(t, a.Delete(t.Context(), d))
	class(t, errdefs.IsNotFound, a.Delete(t.Context(), d))
	if got, err := content.ReadBlob(t.Context(), b, ocispec.Descriptor{Digest: d}); err != nil ||
		string(got) != "shared" {
		t.Errorf("the other holder reads %q, %v", got, err)
	}
	if list := digests(t, a); len(list) > 0 {
		t.Errorf("walk shows %v after the release", list)
	}

	must(t, b.Delete(t.Context(), d))
	select {
	case <-garbage: // once, not after the first release
	case <-time.After(10 * time.Second):
		t.Error("OnGarbage was not called")
	}
	for _, hs := range []*HolderStore{a, b} {
		_, err := hs.Info(t.Context(), d)
		class(t, errdefs.IsNotFound, err)
		_, err = hs.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d})
		class(t, errdefs.IsNotFound, err)
		class(t, errdefs.IsNotFound, hs.Delete(t.Context(), d))
		_, err = hs.Update(t.Context(), content.Info{Digest: d})
		class(t, errdefs.IsNotFound, err)
	}
	_, err = r.Open(t.Context(), d)
	class(t, errdefs.IsNotFound, err)

	put(t, a, "shared") // its bytes were not swept yet
	stats, err := r.Sweep(t.Context())
	must(t, err)
	if stats != (Stats{}) {
		t.Errorf("swept %+v", stats)
	}
	must(t, r.Close()) // waits for OnGarbage
	if len(garbage) > 0 {
		t.Errorf("OnGarbage was called again: %v", <-garbage)
	}
}

// TestOverSocket shows the same through containerd's own server and client.
func TestOverSocket(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	d := put(t, r.For(alice), "shared")
	desc := ocispec.Descriptor{Digest: d, Size: 6}
	cs, stop, err := serve(r.For(bob), t.TempDir()+"/s")
	must(t, err)
	defer stop()
	if list := digests(t, cs); len(list) > 0 {
		t.Errorf("sees %v", list)
	}
	w, err := cs.Writer(t.Context(), content.WithRef("ref"))
	must(t, err)
	write(t, w, "shared")
	class(t, errdefs.IsAlreadyExists, w.Commit(t.Context(), 6, d))
	w.Close()
	if sts, err := cs.ListStatuses(t.Context()); err != nil || len(sts) > 0 {
		t.Errorf("ingests %v, %v", sts, err)
	}
	if list := digests(t, cs); !slices.Equal(list, []digest.Digest{d}) {
		t.Errorf("sees %v", list)
	}
	must(t, r.For(alice).Delete(t.Context(), d))
	if b, err := content.ReadBlob(t.Context(), cs, desc); err != nil || string(b) != "shared" {
		t.Errorf("read %q, %v", b, err)
	}
	must(t, cs.Delete(t.Context(), d))
	class(t, errdefs.IsNotFound, cs.Delete(t.Context(), d))
	_, err = cs.Info(t.Context(), d)
	class(t, errdefs.IsNotFound, err)
	class(t, errdefs.IsNotFound, cs.Abort(t.Context(), "ref"))
}

// TestDeleteInWalk deletes in a walk, as containerd's collector does.
func TestDeleteInWalk(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs, other := r.For(metadata.Containerd), r.For(alice)
	must(t, r.db.Update(func(tx *metadata.Tx) error { // more than a page, without their files
		for i := range pageSize + 10 {
			d := digest.FromString(fmt.Sprint(i))
			if err := tx.PutBlob(metadata.Blob{Digest: d, Size: 1}); err != nil {
				return err
			}
			if err := tx.Hold(metadata.Containerd, metadata.BlobNode(d)); err != nil {
				return err
			}
		}
		return nil
	}))
	keep := put(t, other, "kept")
	_, err := hs.Info(t.Context(), keep)
	must(t, err)
	n := 0
	must(t, hs.Walk(t.Context(), func(i content.Info) error {
		n++
		return hs.Delete(t.Context(), i.Digest)
	}))
	if n != pageSize+11 {
		t.Errorf("walked %d", n)
	}
	if list := digests(t, hs); len(list) > 0 {
		t.Errorf("%d are left", len(list))
	}
	if list := digests(t, other); !slices.Equal(list, []digest.Digest{keep}) {
		t.Errorf("the other holder has %v", list)
	}
}

func digests(t *testing.T, hs content.Manager, filters ...string) (ds []digest.Digest) {
	t.Helper()
	must(t, hs.Walk(t.Context(), func(i content.Info) error {
		ds = append(ds, i.Digest)
		return nil
	}, filters...))
	return ds
}

func TestWalkFilters(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	one, two := put(t, hs, "one"), put(t, hs, "two")
	_, err := hs.Update(t.Context(), content.Info{Digest: one, Labels: map[string]string{"color": "red", "x.y/z": "1"}})
	must(t, err)
	for filter, want := range map[string][]digest.Digest{
		"labels.color==red":       {one},
		`labels."x.y/z"`:          {one},
		"digest==" + two.String(): {two},
		"labels.color!=red":       {two},
		"labels.color==blue":      nil,
	} {
		if got := digests(t, hs, filter); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
	}
	class(t, errdefs.IsInvalidArgument, hs.Walk(t.Context(), nil, "a b c=="))
	stop := fmt.Errorf("enough")
	if err := hs.Walk(t.Context(), func(content.Info) error { return stop }); err != stop {
		t.Errorf("walk ended with %v", err)
	}
}

func TestUpdate(t *testing.T) {
	for name, tc := range map[string]struct {
		labels map[string]string
		fields []string
		want   map[string]string
		is     func(error) bool
	}{
		"all":    {map[string]string{"c": "3"}, nil, map[string]string{"c": "3"}, nil},
		"labels": {map[string]string{"c": "3"}, []string{"labels"}, map[string]string{"c": "3"}, nil},
		"one": {
			map[string]string{"b": "4", "c": "3"}, []string{"labels.b"}, map[string]string{"a": "1", "b": "4"}, nil,
		},
		"removed": {nil, []string{"labels.a"}, map[string]string{"b": "2"}, nil},
		"none":    {nil, []string{"labels"}, nil, nil},
		"dots": {
			map[string]string{"x.y": "5"}, []string{"labels.x.y"}, map[string]string{"a": "1", "b": "2", "x.y": "5"},
			nil,
		},
		"size":           {nil, []string{"size"}, nil, errdefs.IsInvalidArgument},
		"label and size": {nil, []string{"labels.a", "size"}, nil, errdefs.IsInvalidArgument},
		"too long":       {map[string]string{"c": strings.Repeat("x", 5000)}, nil, nil, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			hs := r.For(alice)
			d := put(t, hs, "labelled")
			before, err := hs.Update(t.Context(),
				content.Info{Digest: d, Labels: map[string]string{"a": "1", "b": "2"}})
			must(t, err)
			_, err = hs.Update(t.Context(), content.Info{Digest: d, Labels: tc.labels}, tc.fields...)
			after, ierr := hs.Info(t.Context(), d)
			must(t, ierr)
			if tc.is != nil {
				class(t, tc.is, err)
				tc.want = before.Labels
			} else {
				must(t, err)
				if !after.UpdatedAt.After(before.UpdatedAt) || !after.CreatedAt.Equal(before.CreatedAt) {
					t.Errorf("times %v %v, before %v %v", after.CreatedAt, after.UpdatedAt, before.CreatedAt,
						before.UpdatedAt)
				}
			}
			if !maps.Equal(after.Labels, tc.want) {
				t.Errorf("labels %v, want %v", after.Labels, tc.want)
			}
		})
	}
}

// TestDamagedFile shows that a blob whose file differs from its record is a miss until it is
// written again.
func TestDamagedFile(t *testing.T) {
	const data = "precious"
	for name, damage := range map[string]func(t *testing.T, path string){
		"missing":   func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"short":     func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("pre"), 0o444)) },
		"directory": func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, os.Mkdir(path, 0o700)) },
		"symlink": func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".away"))
			must(t, os.Symlink(path+".away", path))
		},
		"changed": func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("precioos"), 0o444)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			hs := r.For(alice)
			d := put(t, hs, data)
			must(t, os.Chmod(r.Path(d), 0o644))
			damage(t, r.Path(d))

			var faults []error
			must(t, r.Check(t.Context(), func(err metadata.Fault) { faults = append(faults, err) }))
			if len(faults) != 1 || !errdefs.IsDataLoss(faults[0]) || !strings.Contains(faults[0].Error(), d.String()) {
				t.Errorf("faults: %v", faults)
			}
			if name != "changed" { // which only hashing finds out
				_, err := hs.Info(t.Context(), d)
				class(t, errdefs.IsNotFound, err)
				_, err = hs.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d})
				class(t, errdefs.IsNotFound, err)
				_, err = r.Open(t.Context(), d)
				class(t, errdefs.IsNotFound, err)
				if _, ok := r.Size(d); ok {
					t.Error("Size reports that the blob is in the store")
				}
			}
			w := start(t, hs, "again", ocispec.Descriptor{})
			write(t, w, data)
			class(t, errdefs.IsAlreadyExists, w.Commit(t.Context(), int64(len(data)), d))
			f, err := r.Open(t.Context(), d)
			must(t, err)
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || string(got) != data {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func TestHostileDigests(t *testing.T) {
	hex := digest.FromString("x").Encoded()
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	for _, d := range []digest.Digest{
		"", "sha256:", "sha256", "sha256:../../../etc/shadow", digest.Digest("sha256:" + strings.ToUpper(hex)),
		"sha256:abc",
		digest.Digest("sha257:" + hex), digest.Digest("sha256:" + hex + "00"), digest.Digest("../sha256:" + hex),
		digest.Digest("sha256:" + hex + "\x00"), digest.Digest("sha256:" + hex[:62] + "/."),
		digest.Digest("md5:" + hex[:32]),
		digest.Digest("sha256:" + hex + "\n"),
	} {
		_, info := hs.Info(t.Context(), d)
		_, reader := hs.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d})
		_, update := hs.Update(t.Context(), content.Info{Digest: d})
		_, unheld := r.ReaderAt(t.Context(), ocispec.Descriptor{Digest: d})
		_, follow := r.Open(t.Context(), d)
		errs := map[string]error{
			"Info": info, "ReaderAt": reader, "Update": update, "Delete": hs.Delete(t.Context(), d),
			"Store.ReaderAt": unheld, "Open": follow,
		}
		if d != "" {
			desc := ocispec.Descriptor{Digest: d}
			_, errs["Writer"] = hs.Writer(t.Context(), content.WithRef("r"), content.WithDescriptor(desc))
			w := start(t, hs, "commit", ocispec.Descriptor{})
			errs["Commit"] = w.Commit(t.Context(), 0, d)
		}
		for name, err := range errs {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s of %q: %v", name, d, err)
			}
		}
		if _, ok := r.Size(d); ok {
			t.Errorf("Size of %q", d)
		}
	}
}

func TestDigestOf(t *testing.T) {
	d := digest.FromString("x")
	long := digest.SHA512.FromString("x")
	for ref, want := range map[string]digest.Digest{
		"default/7/layer-" + d.String():           d,
		"layer-" + d.String():                     d,
		d.String():                                d,
		"k8s.io/12/layer-a-b-" + long.String():    long,
		"manifest-" + d.String() + "-more":        "",
		"layer-" + d.String()[:70]:                "",
		"layersha256:" + d.Encoded():              "", // no algorithm has this name
		"default/7/layer-md5:" + d.Encoded()[:32]: "",
		"upload":  "",
		":":       "",
		"":        "",
		"sha256:": "",
	} {
		if got := digestOf(ref); got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
}
