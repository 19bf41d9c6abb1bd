// Package rebuild makes the database of a root again, as after its loss or damage: from what can still be
// read of it, from blobs that hash to their names, from layers and rootfs that are what their seals say,
// and from the images of index.json.
//
// It owns lost/ in the root, where it moves what containers wrote and what else no record can be made of,
// and the former databases (metadata.db.old and so on).
//
// Its invariant: an error or a crash at any time leaves the former database in its place; the new one takes
// it when it is complete and checked. The surprising rule: it collects nothing. What belongs to nothing
// that is known gets a holder that a user can see and release.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/ocilayout"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/rootlock"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Found is what a rebuild found: numbers of records that the new database has, and what became of the rest.
type Found struct {
	Images, Blobs, Layers, Rootfs, Snapshots int
	// Lost is the number of directories and files that were moved below lost/, because no record could be
	// made of them.
	Lost int
	// Names reports whether the names of all images are known: from index.json, or from the former database
	// if that was complete.
	Names bool
	// Kept is the holder of what belongs to nothing that is known; "" if there is no such thing.
	Kept string
}

// Holder holds what a rebuild found without a known holder. It is not collected until the holder is released.
const Holder metadata.Holder = "rebuilt"

// Run makes the database of a root again. The root is locked by this process.
func Run(ctx context.Context, root string, lock *rootlock.Lock) (Found, error) {
	r := &rebuild{
		root: root, path: filepath.Join(root, rootlock.Database), lock: lock, layout: ocilayout.New(root, nil),
		daemon: lock.Daemon(),
	}
	err := r.run(ctx)
	return r.found, err
}

// rebuild is one call of Run.
type rebuild struct {
	root, path string // path is the database's
	lock       *rootlock.Lock
	layout     *ocilayout.Layout
	daemon     bool // the root is a daemon's
	found      Found

	old     *metadata.Salvaged
	blobs   []metadata.Blob // that are intact
	damaged []string        // paths of blobs that are not
	dirs    *layer.Recovered
	index   []ocispec.Descriptor // of index.json
	badFile bool                 // index.json cannot be read, or not to its end
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
	if r.badFile { // the next opening would refuse to replace a file that is not regular or too large
		return r.layout.Remove()
	}
	return nil
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
	return len(r.old.Facts["flag/"+metadata.FlagDaemon]) > 0 || len(r.dirs.Snapshots) > 0 ||
		slices.ContainsFunc(r.old.Holds, func(h metadata.Hold) bool { return h.Holder.IsContainerd() })
}

// setAside moves below lost/ what no record was made of: a later collection would take it for garbage. A
// copy of an index.json that can't be read goes there as well.
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
	var index []byte
	if r.badFile {
		index = r.layout.Text()
	}
	if len(names) == 0 && len(index) == 0 {
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
	if len(index) > 0 {
		return r.layout.WriteText(lost, index)
	}
	return nil
}

// moveAside moves what lies on the root's file system. In a pool on another disk it stays, under a name
// that is no entry of the pool and that no collection looks at.
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

// keep gives the former database the first free name of metadata.db.old, metadata.db.old.1 and so on. A
// database that was whole gets only the first of these names or none, because the new one has all its
// records. Where the file system has hard links, the former database also stays in its place, so that the
// root is never without a database.
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
