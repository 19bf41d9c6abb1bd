package metadata_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/metadata"
)

func TestSequence(t *testing.T) {
	for _, tc := range []struct {
		key, ns string
		n       uint64
		ok      bool
	}{
		{"default/12/sha256:abc", "default", 12, true},
		{"k8s.io/1/extract-1 sha256:abc", "k8s.io", 1, true},
		{"default/12/", "default", 12, true},
		{"default/012/a", "", 0, false},
		{"default/0/a", "", 0, false},
		{"default/x/a", "", 0, false},
		{"default/12", "", 0, false},
		{"/12/a", "", 0, false},
		{"default//a", "", 0, false},
		{"default/99999999999999999999/a", "", 0, false},
		{"key", "", 0, false},
		{"", "", 0, false},
	} {
		ns, n, ok := metadata.Sequence(tc.key)
		if ok != tc.ok || ok && (ns != tc.ns || n != tc.n) {
			t.Errorf("%q: %q %d %v", tc.key, ns, n, ok)
		}
	}
}

// TestHandOver moves everything that one containerd holds to another one, under keys of the receiver. The receiver
// loses nothing that it holds.
func TestHandOver(t *testing.T) {
	second := metadata.ContainerdHolder("d1")
	for _, tc := range []struct {
		name     string
		from, to metadata.Holder
	}{
		{"to the first", second, metadata.Containerd},
		{"from the first", metadata.Containerd, second},
		{"between others", second, metadata.ContainerdHolder("d2")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := open(t)
			put := func(h metadata.Holder, name, parent string) {
				t.Helper()
				must(t, db.Update(func(tx *metadata.Tx) error {
					l := metadata.Layer{Key: "layer " + string(h) + name, Dir: "1"}
					s := metadata.Snapshot{Key: h.SnapshotKey(name), Parent: h.SnapshotKey(parent), Layer: l.Key}
					s.Fixup = metadata.NoFixup
					return errors.Join(tx.PutLayer(l), tx.PutSnapshot(s), tx.Hold(h, metadata.SnapshotNode(s.Key)),
						tx.Hold(metadata.SnapshotHolder(s.Key), metadata.LayerNode(l.Key)))
				}))
			}
			put(tc.from, "default/1/a", "")
			put(tc.from, "default/2/b", "default/1/a")
			put(tc.from, "default/3/c", "default/2/b")
			put(tc.to, "default/1/x", "")
			put(tc.to, "default/2/b", "default/1/x") // its key is that of a moved snapshot
			put(tc.to, "default/3/y", "default/2/b")
			must(t, db.Update(func(tx *metadata.Tx) error {
				return errors.Join(putBlob(tx, blobOf(1), tc.from), putBlob(tx, blobOf(2), tc.to),
					tx.Hold(tc.to, metadata.BlobNode(blobOf(1))))
			}))
			var moved []metadata.Rekeyed
			must(t, db.Update(func(tx *metadata.Tx) (err error) {
				moved, err = metadata.HandOver(tx, tc.from, tc.to)
				return err
			}))
			if len(moved) != 4 {
				t.Errorf("rekeyed: %v", moved)
			}
			must(t, db.Check(func(f metadata.Fault) { t.Error(f) }))
			must(t, db.View(func(tx *metadata.Tx) error {
				if tx.HoldsAny(tc.from) {
					t.Errorf("%s still holds something", tc.from)
				}
				parents := map[string]string{}
				for _, key := range tx.Held(tc.to, metadata.KindSnapshot, "", -1) {
					s, err := tx.Snapshot(key)
					must(t, err)
					parents[tc.to.SnapshotName(key)] = tc.to.SnapshotName(s.Parent)
				}
				want := map[string]string{
					"default/1/a": "", "default/2/b": "default/1/a", "default/3/c": "default/2/b",
					"default/1/x": "", "default/2/b (replaced 1)": "default/1/x",
					"default/3/y": "default/2/b (replaced 1)",
				}
				for k, p := range want {
					if got, ok := parents[k]; !ok || got != p {
						t.Errorf("%s: parent %q, want %q", k, got, p)
					}
				}
				if len(parents) != len(want) {
					t.Errorf("snapshots: %v", parents)
				}
				if n := metadata.LastSequence(tx, tc.to, "default"); n != 3 {
					t.Errorf("last sequence %d", n)
				}
				if blobs := tx.Held(tc.to, metadata.KindBlob, "", -1); len(blobs) != 2 {
					t.Errorf("blobs: %v", blobs)
				}
				return nil
			}))
		})
	}
}

func TestBindings(t *testing.T) {
	db := open(t)
	now := time.Now().UTC()
	old := metadata.Binding{
		ID: "d1", Holder: metadata.Containerd, Inode: 7, Born: now, Path: "/meta.db", Writes: 3, Seen: now,
	}
	late := metadata.Binding{ID: "d0", Holder: metadata.Containerd, Recognized: true, Seen: now.Add(time.Hour)}
	late.First = map[string]uint64{"default": 2}
	must(t, db.Update(func(tx *metadata.Tx) error {
		return errors.Join(metadata.PutBinding(tx, old), metadata.PutBinding(tx, late),
			metadata.PutBinding(tx, metadata.Binding{ID: "d2", Holder: "containerd/d2"}))
	}))
	must(t, db.Update(func(tx *metadata.Tx) error { return metadata.DeleteBinding(tx, "d2") }))
	must(t, db.View(func(tx *metadata.Tx) error {
		bs, err := metadata.Bindings(tx)
		must(t, err)
		if len(bs) != 2 || bs[1].Inode != 7 || !bs[1].Born.Equal(now) || bs[0].First["default"] != 2 {
			t.Errorf("%+v", bs)
		}
		if b, ok := metadata.BindingOf(bs, metadata.Containerd); !ok || b.ID != "d0" {
			t.Errorf("%+v %v", b, ok)
		}
		if _, ok := metadata.BindingOf(bs, "containerd/d2"); ok {
			t.Error("a deleted binding")
		}
		return nil
	}))
	for h, want := range map[metadata.Holder]bool{
		"containerd": true, "containerd/d1": true, "containerds": false, "image/containerd": false,
	} {
		if h.IsContainerd() != want {
			t.Errorf("%s: %v", h, !want)
		}
		key := h.SnapshotKey("default/1/a")
		if h.SnapshotName(key) != "default/1/a" || (key != "default/1/a") != (h == "containerd/d1") {
			t.Errorf("%s: key %q", h, key)
		}
	}
}
