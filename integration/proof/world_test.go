package proof

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/integration"
)

// world is what the programs acknowledged: the images of Tank's commands, those of containerd, and its snapshots.
type world struct {
	mu     sync.Mutex
	frozen bool // the power is cut: an answer that comes now was not acknowledged
	cli    map[string]*image
	images map[string]*image
	snaps  map[string]content
}

// content is what a snapshot has to show: a tree, and files above it.
type content struct {
	tree  []integration.Node
	files map[string]string
}

func newWorld() *world {
	return &world{cli: map[string]*image{}, images: map[string]*image{}, snaps: map[string]content{}}
}

// freeze ends the recording.
func (w *world) freeze() {
	w.mu.Lock()
	w.frozen = true
	w.mu.Unlock()
}

func (w *world) thaw() {
	w.mu.Lock()
	w.frozen = false
	w.mu.Unlock()
}

// update changes the record, unless the power is cut.
func (w *world) update(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.frozen {
		change()
	}
}

// copyOf returns a copy that later updates do not change.
func (w *world) copyOf() *world {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &world{cli: maps.Clone(w.cli), images: maps.Clone(w.images), snaps: maps.Clone(w.snaps)}
}

// verify compares the running node with the world and returns the differences.
func (w *world) verify(n *node) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(w.cli)) {
		errs = append(errs, n.verifyPulled(name, w.cli[name]))
	}
	ctx, cancel := n.context(2 * time.Minute)
	defer cancel()
	for _, name := range slices.Sorted(maps.Keys(w.images)) {
		errs = append(errs, n.verifyImage(ctx, name, w.images[name]))
	}
	errs = append(errs, w.verifySnapshots(ctx, n))
	if code, out := n.command("check"); code != 0 {
		errs = append(errs, fmt.Errorf("check: exit %d: %s", code, out))
	}
	return errors.Join(errs...)
}

// verifyPulled checks that a command returns an image without the network.
func (n *node) verifyPulled(name string, img *image) error {
	code, out := n.command("pull", "--offline", "--progress", "none", name)
	if code != 0 {
		return fmt.Errorf("lost: pull --offline %s: exit %d: %s", name, code, out)
	}
	return same(name, strings.TrimSuffix(out, "\n"), content{tree: img.tree})
}

// same compares a directory with what it has to be.
func same(what, dir string, want content) error {
	got, err := integration.Tree(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	got = slices.DeleteFunc(got, func(node integration.Node) bool {
		_, extra := want.files[node.Path]
		return extra
	})
	var errs []error
	if d := integration.CompareTrees(want.tree, got, 5); len(d) > 0 {
		errs = append(errs, fmt.Errorf("%s: another tree: %s", what, strings.Join(d, "; ")))
	}
	for _, name := range slices.Sorted(maps.Keys(want.files)) {
		if b, err := os.ReadFile(dir + "/" + name); err != nil || string(b) != want.files[name] {
			errs = append(errs, fmt.Errorf("%s: the file %s has %d bytes of %d, %w", what, name, len(b),
				len(want.files[name]), err))
		}
	}
	return errors.Join(errs...)
}

// verifyImage checks an image of containerd: its record, its blobs and its unpacked layers.
func (n *node) verifyImage(ctx context.Context, name string, img *image) error {
	i, err := n.client().GetImage(ctx, name)
	if err != nil {
		return fmt.Errorf("lost: image %s: %w", name, err)
	}
	if size, err := i.Usage(ctx); err != nil || size == 0 {
		return fmt.Errorf("lost: blobs of image %s: %d bytes, %w", name, size, err)
	}
	if ok, err := i.IsUnpacked(ctx, "tank"); err != nil || !ok {
		return fmt.Errorf("lost: image %s is not unpacked, %w", name, err)
	}
	return n.shows(ctx, snapshots.Info{Name: img.chain, Kind: snapshots.KindCommitted}, content{tree: img.tree}, true)
}

// verifySnapshots checks every snapshot that containerd knows: it mounts and, if it was acknowledged, has its content.
func (w *world) verifySnapshots(ctx context.Context, n *node) error {
	var infos []snapshots.Info
	err := n.client().SnapshotService("tank").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		infos = append(infos, i)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	var errs []error
	listed := map[string]bool{}
	for _, i := range infos {
		listed[i.Name] = true
		want, known := w.snaps[i.Name]
		errs = append(errs, n.shows(ctx, i, want, known))
	}
	for _, key := range slices.Sorted(maps.Keys(w.snaps)) {
		if !listed[key] {
			errs = append(errs, fmt.Errorf("lost: containerd does not list the acknowledged snapshot %s", key))
		}
	}
	recorded, err := n.recorded()
	for _, key := range recorded {
		if _, acknowledged := w.snaps[key]; !listed[key] && !acknowledged && !strings.HasPrefix(key, "view-of-") &&
			(n.strict || !committing(key)) {
			errs = append(errs, fmt.Errorf("lost: Tank does not know the snapshot %s, which containerd recorded", key))
		}
	}
	return errors.Join(append(errs, err)...)
}

// committing reports whether a snapshot with this key may have been in the middle of a commit. After a cut between
// Tank's record and containerd's, containerd still has the active snapshot, and Tank only the committed one. Long
// runs count that as a failure.
func committing(key string) bool {
	return strings.HasPrefix(key, "extract-") || strings.HasSuffix(key, "-writing")
}

// shows mounts a snapshot, a committed one through a view, and compares it if its content is known.
func (n *node) shows(ctx context.Context, i snapshots.Info, want content, known bool) (err error) {
	s := n.client().SnapshotService("tank")
	var mounts []mount.Mount
	if i.Kind == snapshots.KindCommitted {
		view := "view-of-" + i.Name
		mounts, err = s.View(ctx, view, i.Name)
		if errdefs.IsAlreadyExists(err) {
			mounts, err = s.Mounts(ctx, view)
		}
		defer func() {
			if e := s.Remove(ctx, view); e != nil && err == nil && !errdefs.IsNotFound(e) {
				err = fmt.Errorf("remove %s: %w", view, e)
			}
		}()
	} else {
		mounts, err = s.Mounts(ctx, i.Name)
	}
	if err != nil {
		return fmt.Errorf("lost: snapshot %s: %w", i.Name, err)
	}
	if strings.HasPrefix(i.Name, "extract-") && i.Kind == snapshots.KindActive {
		return nil // for Tank's own differ: a layer alone, which the kernel does not mount
	}
	return n.mounted(mounts, func(dir string) error {
		if !known {
			return nil
		}
		return same("snapshot "+i.Name, dir, want)
	})
}

// mounted calls f while the mounts are mounted.
func (n *node) mounted(mounts []mount.Mount, f func(dir string) error) error {
	dir, err := os.MkdirTemp(n.e.Dir, "m")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	err = f(dir)
	return errors.Join(err, mount.UnmountAll(dir, 0))
}

// drain removes everything through both doors and returns what is left on the disk after one sweep.
func (n *node) drain() error {
	ctx, cancel := n.context(2 * time.Minute)
	defer cancel()
	if err := n.emptyContainerd(ctx); err != nil {
		return fmt.Errorf("empty containerd: %w", err)
	}
	if err := n.emptyTank(); err != nil {
		return err
	}
	if code, out := n.command("gc"); code != 0 {
		return fmt.Errorf("gc: exit %d: %s", code, out)
	}
	left := n.k.Leftovers()
	for deadline := time.Now().Add(5 * time.Second); len(left) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // containerd's removals are swept in the background
		left = n.k.Leftovers()
	}
	if len(left) > 0 {
		_, holders := n.command("holders")
		return fmt.Errorf("left after a sweep: %s\nholders: %s", strings.Join(left, " "), holders)
	}
	return nil
}
