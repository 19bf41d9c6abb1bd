package snapshot_test

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// containerdSnapshots makes the calls of a containerd that pulls an image and runs a container, and
// returns the mounts of the container. Each containerd counts its keys from 1.
func containerdSnapshots(t *testing.T, sn *snapshot.Snapshotter) []mount.Mount {
	t.Helper()
	_, err := sn.Prepare(ctx, "default/1/extract-1 sha256:layer", "")
	must(t, err)
	must(t, sn.Commit(ctx, "default/2/sha256:layer", "default/1/extract-1 sha256:layer"))
	m, err := sn.Prepare(ctx, "default/3/container", "default/2/sha256:layer")
	must(t, err)
	_, err = sn.View(ctx, "default/4/view", "default/2/sha256:layer")
	must(t, err)
	return m
}

// TestTwoContainerds shows that two containerds may choose the same keys for their snapshots, and
// that neither sees or removes those of the other. HandOver moves the snapshots of one to the
// other.
func TestTwoContainerds(t *testing.T) {
	requireRoot(t)
	w := open(t)
	first, second := metadata.Containerd, metadata.ContainerdHolder("d1")
	all := []string{"default/2/sha256:layer", "default/3/container", "default/4/view"}
	mounts := map[metadata.Holder][]mount.Mount{}
	for _, h := range []metadata.Holder{first, second} {
		sn := w.For(h)
		mounts[h] = containerdSnapshots(t, sn)
		i, err := sn.Update(ctx, snapshots.Info{Name: all[1], Labels: map[string]string{"of": string(h)}}, "labels.of")
		if err != nil || i.Name != all[1] || i.Parent != all[0] {
			t.Errorf("%s: %+v, %v", h, i, err)
		}
		if _, err := sn.Usage(ctx, all[0]); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
	for _, h := range []metadata.Holder{first, second} {
		sn := w.For(h)
		i, err := sn.Stat(ctx, all[1])
		if err != nil || i.Name != all[1] || i.Parent != all[0] || i.Labels["of"] != string(h) {
			t.Errorf("%s: %+v, %v", h, i, err)
		}
		if m, err := sn.Mounts(ctx, all[1]); err != nil || !slices.EqualFunc(m, mounts[h], sameMount) {
			t.Errorf("%s: %v, %v", h, m, err)
		}
		if got, err := names(sn); err != nil || !slices.Equal(slices.Sorted(slices.Values(got)), all) {
			t.Errorf("%s: %q, %v", h, got, err)
		}
	}
	if slices.EqualFunc(mounts[first], mounts[second], sameMount) {
		t.Error("both containers share one directory")
	}

	must(t, w.HandOver(first, second, func(tx *metadata.Tx) error { return nil }))
	if got, err := names(w.For(first)); err != nil || len(got) > 0 {
		t.Errorf("the first containerd still has %q, %v", got, err)
	}
	sn := w.For(second)
	if m, err := sn.Mounts(ctx, all[1]); err != nil || !slices.EqualFunc(m, mounts[first], sameMount) {
		t.Errorf("mounts after the handover: %v, %v", m, err)
	}
	must(t, sn.Commit(ctx, "default/9/committed", all[1]))
	got, err := names(sn)
	must(t, err)
	for range 2 { // children first
		for _, key := range got {
			if err := sn.Remove(ctx, key); err != nil && !errdefs.IsFailedPrecondition(err) &&
				!errdefs.IsNotFound(err) {
				t.Error(err)
			}
		}
	}
	must(t, sn.Cleanup(ctx))
	w.nothingLeft(t)
}

func sameMount(a, b mount.Mount) bool {
	return a.Type == b.Type && a.Source == b.Source && slices.Equal(a.Options, b.Options)
}
