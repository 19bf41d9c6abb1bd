package proof

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	transfer "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

// kept are the labels of a snapshot that containerd's collector keeps.
var kept = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "yes"})

// pull pulls an image by Tank's command.
func (n *node) pull(w *world, name string, img *image) error {
	code, out := n.command("pull", "--progress", "none", name)
	if code != 0 {
		return fmt.Errorf("pull %s: exit %d: %s", name, code, out)
	}
	w.update(func() { w.cli[name] = img })
	return nil
}

// forget removes an image by Tank's command.
func (n *node) forget(w *world, name string) error {
	w.update(func() { delete(w.cli, name) }) // from now on it may be there or not
	if code, out := n.command("rm", name); code != 0 && code != 3 {
		return fmt.Errorf("rm %s: exit %d: %s", name, code, out)
	}
	return nil
}

// collect runs both collectors.
func (n *node) collect() error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	if err := n.collectContainerd(ctx); err != nil {
		return err
	}
	if code, out := n.command("gc"); code != 0 {
		return fmt.Errorf("gc: exit %d: %s", code, out)
	}
	return nil
}

// collectContainerd waits for a collection of containerd's.
func (n *node) collectContainerd(ctx context.Context) error {
	s := n.client().LeasesService()
	l, err := s.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("make a lease: %w", err)
	}
	if err := s.Delete(ctx, l, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return nil
}

// unpack pulls an image by containerd, which has Tank unpack it.
func (n *node) unpack(w *world, name string, img *image) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	from, err := registry.NewOCIRegistry(ctx, name)
	if err != nil {
		return err
	}
	p := platforms.DefaultSpec()
	to := transfer.NewStore(name, transfer.WithPlatforms(p), transfer.WithAllMetadata, transfer.WithUnpack(p, "tank"))
	if err := n.client().Transfer(ctx, from, to); err != nil {
		return fmt.Errorf("containerd pulls %s: %w", name, err)
	}
	w.update(func() { w.images[name] = img })
	return nil
}

// tag gives an image of containerd a second name.
func (n *node) tag(w *world, name, second string) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	s := n.client().ImageService()
	i, err := s.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	i.Name = second
	if _, err := s.Create(ctx, i); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	w.update(func() { w.images[second] = w.images[name] })
	return nil
}

// untag removes an image from containerd and waits for its collection.
func (n *node) untag(w *world, name string) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	w.update(func() { delete(w.images, name) })
	err := n.client().ImageService().Delete(ctx, name, images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("containerd removes %s: %w", name, err)
	}
	return nil
}

// prepare makes a snapshot above an image, or above nothing.
func (n *node) prepare(w *world, key string, img *image) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	parent, want := "", content{}
	if img != nil {
		parent, want.tree = img.chain, img.tree
	}
	_, err := n.client().SnapshotService("tank").Prepare(ctx, key, parent, kept)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare %s: %w", key, err)
	}
	w.update(func() { w.snaps[key] = want })
	return nil
}

// commit prepares a snapshot, writes a file into it without a sync, and commits it as name.
func (n *node) commit(w *world, key, name string, img *image) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	s := n.client().SnapshotService("tank")
	if _, err := s.Stat(ctx, name); err == nil { // it was committed before a cut
		return nil
	}
	if err := n.prepare(w, key, img); err != nil {
		return err
	}
	mounts, err := s.Mounts(ctx, key)
	if err != nil {
		return fmt.Errorf("mounts of %s: %w", key, err)
	}
	files := map[string]string{"important": strings.Repeat("important "+name+"\n", 500)}
	w.update(func() { delete(w.snaps, key) }) // what it shows is changing, and its name goes
	if err := n.write(mounts, files); err != nil {
		return fmt.Errorf("write into %s: %w", key, err)
	}
	if err := s.Commit(ctx, name, key, kept); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	want := content{files: files}
	if img != nil {
		want.tree = img.tree
	}
	w.update(func() { w.snaps[name] = want })
	return nil
}

// write writes files through mounts, without a sync.
func (n *node) write(mounts []mount.Mount, files map[string]string) error {
	return n.mounted(mounts, func(dir string) error {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// remove removes a snapshot.
func (n *node) remove(w *world, key string) error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	w.update(func() { delete(w.snaps, key) })
	if err := n.client().SnapshotService("tank").Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

// emptyContainerd removes every container, image, snapshot and lease of containerd.
func (n *node) emptyContainerd(ctx context.Context) error {
	if err := n.removeContainers(); err != nil {
		return err
	}
	all, err := n.client().ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if err := n.client().ImageService().Delete(ctx, i.Name); err != nil {
			return err
		}
	}
	held, err := n.client().LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, l := range held {
		if err := n.client().LeasesService().Delete(ctx, l); err != nil {
			return err
		}
	}
	if err := n.releaseSnapshots(ctx); err != nil {
		return err
	}
	return n.collectContainerd(ctx)
}

// releaseSnapshots leaves every snapshot to containerd's collector. Its Remove would refuse a parent whose child the
// collector has taken, because the collector does not delete the child's name from the parent's record.
func (n *node) releaseSnapshots(ctx context.Context) error {
	s := n.client().SnapshotService("tank")
	var infos []snapshots.Info
	err := s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		infos = append(infos, i)
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range infos {
		i.Labels = nil
		if _, err := s.Update(ctx, i, "labels"); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release the snapshot %s: %w", i.Name, err)
		}
	}
	return nil
}

// emptyTank removes every image of Tank's commands, and what unfinished pulls hold.
func (n *node) emptyTank() error {
	code, out := n.command("images", "--json")
	if code != 0 {
		return fmt.Errorf("images: exit %d: %s", code, out)
	}
	var pulled []struct{ Ref string }
	if err := json.Unmarshal([]byte(out), &pulled); err != nil {
		return fmt.Errorf("images: %w: %s", err, out)
	}
	for _, i := range pulled {
		if code, out := n.command("rm", i.Ref); code != 0 {
			return fmt.Errorf("rm %s: exit %d: %s", i.Ref, code, out)
		}
	}
	code, out = n.command("holders", "--json")
	if code != 0 {
		return fmt.Errorf("holders: exit %d: %s", code, out)
	}
	var holders []struct{ Holder string }
	if err := json.Unmarshal([]byte(out), &holders); err != nil {
		return fmt.Errorf("holders: %w: %s", err, out)
	}
	var errs []error
	for _, h := range holders {
		if !strings.HasPrefix(h.Holder, "pull/") {
			continue
		}
		if code, out := n.command("release", h.Holder); code != 0 && code != 3 {
			errs = append(errs, fmt.Errorf("release %s: exit %d: %s", h.Holder, code, out))
		}
	}
	return errors.Join(errs...)
}
