package tank

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/ocilayout"
	"github.com/tank-snapshotter/tank/internal/rootlock"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Rebuilt is what a Rebuild found.
type Rebuilt struct {
	Images, Blobs, Layers, Rootfs, Snapshots int
	// Lost are directories and files that were moved below lost/: no record could be made of them.
	Lost int
	// Names reports whether all names of images are known: from index.json, or from the former database when that was
	// whole.
	Names bool
	// Kept is the holder of what belongs to nothing that is known: "" when there is no such thing.
	Kept string
}

// RebuiltHolder holds what a Rebuild found without a known owner: nothing of it is collected until it is
// released.
const RebuiltHolder metadata.Holder = "rebuilt"

// Rebuild makes a root's database again, as after its loss or damage: from what can still be read of it, from blobs
// that hash to their names, from layers and rootfs that are what their seals say, and from the images of index.json.
// It collects nothing. The new database takes the place of the former one when it is finished and checked, and an
// error or a crash at any time leaves the former one in place; that stays as metadata.db.old.
//
// What containers wrote, and what else no record can be made of, is moved below lost/. errdefs.ErrUnavailable while
// another process owns the root, and otherwise the errors of Open for a directory that is no root.
func Rebuild(ctx context.Context, root string) (Rebuilt, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root: %w", err)
	}
	lock, err := rootlock.Take(root, nil)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("root %s: %w", root, err)
	}
	r := &rebuild{root: root, path: filepath.Join(root, rootlock.Database), lock: lock, layout: ocilayout.New(root, nil), daemon: lock.Daemon()}
	if err := errors.Join(r.run(ctx), lock.Close()); err != nil {
		return Rebuilt{}, fmt.Errorf("root %s: %w", root, err)
	}
	// Opening writes index.json, and shows that the root can be opened.
	switch t, err := Open(root, &Options{Existing: true}); {
	case errdefs.IsUnavailable(err): // another process was quicker, and could
	case err != nil:
		return r.found, err
	default:
		return r.found, t.Close()
	}
	return r.found, nil
}

// rebuild is one call of Rebuild.
type rebuild struct {
	root, path string
	lock       *rootlock.Lock
	layout     *ocilayout.Layout
	daemon     bool // the root is a daemon's
	found      Rebuilt

	old     *metadata.Salvaged
	blobs   []metadata.Blob // that are intact
	damaged []string        // paths of blobs that are not
	dirs    *layer.Recovered
	index   []ocispec.Descriptor // of index.json
	badFile bool                 // index.json can't be read, or not wholly
}

func (r *rebuild) run(ctx context.Context) (err error) {
	if r.old, err = r.salvage(); err != nil {
		return err
	}
	r.index, err = r.layout.Images()
	if r.badFile = err != nil; r.badFile && !r.old.Complete {
		log.G(ctx).WithError(err).Warn("rebuild: index.json")
	}
	if r.blobs, r.damaged, err = content.Recover(ctx, r.root); err != nil {
		return err
	}
	if r.dirs, err = layer.Recover(ctx, r.root); err != nil {
		return err
	}
	r.daemon = r.daemon || r.hadDaemon()
	p := newPlan(r)
	p.fill(ctx)
	// What the records call durable has to be on the disk.
	if err := r.lock.Sync(); err != nil {
		return err
	}
	built := r.path + ".new"
	if err := metadata.Build(built, nil, p.write); err != nil {
		return err
	}
	if err := r.setAside(p); err != nil {
		return errors.Join(err, os.Remove(built))
	}
	if err := r.replace(built); err != nil {
		return err
	}
	r.found.Names = r.old.Complete || !r.badFile || len(r.blobs) == 0
	return r.dropIndex()
}

// salvage reads the former database, or, when nothing is in it, the one that an earlier rebuild put aside.
func (r *rebuild) salvage() (*metadata.Salvaged, error) {
	s, err := metadata.Salvage(r.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errdefs.IsDataLoss(err) {
		return nil, err
	}
	if !s.Empty() {
		return s, nil
	}
	earlier, err := filepath.Glob(r.path + ".old*")
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Backward(earlier) {
		if e, err := metadata.Salvage(path); err == nil && !e.Empty() {
			e.Complete = false // it does not know what came later
			return e, nil
		}
	}
	return s, nil
}

// hadDaemon reports whether something in the root shows that a containerd used it.
func (r *rebuild) hadDaemon() bool {
	return len(r.old.Facts["flag/"+daemonFlag]) > 0 || len(r.dirs.Snapshots) > 0 ||
		slices.ContainsFunc(r.old.Holds, func(h metadata.Hold) bool { return h.Holder.IsContainerd() })
}

// setAside moves below lost/ what no record was made of: a later collection would take it for garbage. A copy of an
// index.json that can't be read goes there as well.
func (r *rebuild) setAside(p *plan) error {
	lost := filepath.Join(r.root, "lost", time.Now().UTC().Format("20060102T150405.000000000"))
	names := map[string]string{}
	for _, path := range r.damaged {
		names[path] = "blob-" + filepath.Base(path)
	}
	for _, name := range p.lostSnapshots {
		names[filepath.Join(r.root, "snapshots", name)] = name
	}
	for _, name := range p.lostLayers {
		names[filepath.Join(r.root, "layers", name)] = "layer-" + name
	}
	r.found.Lost = len(names)
	var copied []byte
	if r.badFile {
		copied = r.layout.Text()
	}
	if len(names) == 0 && len(copied) == 0 {
		return nil
	}
	if err := os.MkdirAll(lost, 0o700); err != nil {
		return err
	}
	for from, name := range names {
		if err := moveAside(from, filepath.Join(lost, name)); err != nil {
			return err
		}
	}
	if len(copied) > 0 {
		return r.layout.WriteText(lost, copied)
	}
	return nil
}

// moveAside moves what lies on the root's file system. In a pool on another disk it stays, under a name that is no
// entry of the pool and that no collection looks at.
func moveAside(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		lost := filepath.Join(filepath.Dir(from), "lost+found")
		if err := os.MkdirAll(lost, 0o700); err != nil {
			return err
		}
		return os.Rename(from, filepath.Join(lost, filepath.Base(filepath.Dir(to))+"-"+filepath.Base(to)))
	}
	return err
}

// replace puts the new database in the place of the former one, which is kept unless it has no bytes.
func (r *rebuild) replace(built string) error {
	fi, err := os.Lstat(r.path)
	if err == nil && (fi.Size() > 0 || !fi.Mode().IsRegular()) {
		if err := r.keep(fi.Mode()); err != nil {
			return errors.Join(err, os.Remove(built))
		}
	}
	if err := os.Rename(built, r.path); err != nil {
		return errors.Join(err, os.Remove(built))
	}
	return fsys.OS.SyncDir(r.root)
}

// keep gives the former database the first free name of metadata.db.old, metadata.db.old.1 and so on. A database that
// was whole gets only the first of these names or none, because the new one has all its records. Where the file system
// has hard links, the former database also stays in its place, so that the root is never without a database.
func (r *rebuild) keep(mode os.FileMode) error {
	for n := 0; n == 0 || !r.old.Complete; n++ {
		to := r.path + ".old"
		if n > 0 {
			to = fmt.Sprintf("%s.old.%d", r.path, n)
		}
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if mode.IsRegular() && os.Link(r.path, to) == nil {
			return nil
		}
		return os.Rename(r.path, to)
	}
	return nil
}

// dropIndex removes an index.json that is not a regular file of bounded size, because the next opening would refuse to
// replace it.
func (r *rebuild) dropIndex() error {
	if !r.badFile {
		return nil
	}
	return r.layout.Remove()
}
