// Package rebuild makes the database of a root again, as after its loss or damage: from what can still be
// read of it, from the copies of records that lie beside it (images.records, bindings.records and the record in
// each directory of snapshots/), from blobs that hash to their names, from layers and rootfs that are what their
// seals say, and from the images of index.json.
//
// It owns lost/ in the root, where it moves what containers wrote and what else no record can be made of,
// and the former databases (metadata.db.old and so on).
//
// Its invariant: an error or a crash at any time leaves the former database in its place; the new one takes
// it when it is complete and checked. A rebuild that was killed is run again. The surprising rule: it collects
// nothing. What belongs to nothing that is known gets a holder that a user can see and release.
package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/copies"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/ocilayout"
	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/internal/rootlock"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// Found is what a rebuild found: numbers of records that the new database has, and what became of the rest.
type Found struct {
	Images, Blobs, Layers, Rootfs, Snapshots int
	// Lost is the number of directories and files that were moved below lost/, because no record could be
	// made of them. LostIn is the directory below lost/; "" if nothing was moved.
	Lost   int
	LostIn string
	// Former is the path at which the former database was kept; "" if there was none, or if it had no fault
	// and an earlier one is kept already.
	Former string
	// Names reports whether the names of all images are known: from images.records, from index.json, or from the
	// former database if that was complete.
	Names bool
	// Kept is the holder of what belongs to nothing that is known; "" if there is no such thing. Of several, it is
	// that which keeps blobs.
	Kept string
}

// Holder holds what a rebuild found without a known holder, if the names of images may be missing. It is not
// collected until the holder is released.
const Holder metadata.Holder = "rebuilt"

// unfinished is the reference of an unfinished pull that holds such things if all images are known: only unfinished
// pulls can have needed them. It lapses as every other unfinished pull does. No image has such a reference.
const unfinished = "_rebuilt"

// Options of Run.
type Options struct {
	// Unattended is for a program that rebuilds without being asked to. It refuses to where the disk may be at
	// fault and not the database: a pool is empty although records name entries of it, as when its file system
	// is not mounted, or reading a blob or a layer fails. The error is of class errdefs.ErrFailedPrecondition.
	// false: what cannot be read counts as damaged, and what is missing as lost.
	Unattended bool
	// Progress is called with what the rebuild begins to do, such as "comparing blobs". nil: nobody is told.
	Progress func(step string)
	// FS changes the file system. nil: fsys.OS.
	FS fsys.FS
}

// Run makes the database of a root again. The root is locked by this process. On a full disk it gives up the
// root's reserve and begins again. opts may be nil.
func Run(ctx context.Context, root string, lock *rootlock.Lock, opts *Options) (found Found, err error) {
	err = reserve.New(root).Spend(func() (err error) {
		r := &rebuild{root: root, path: filepath.Join(root, rootlock.Database), lock: lock, daemon: lock.Daemon()}
		if opts != nil {
			r.opts = *opts
		}
		r.fs = cmp.Or(r.opts.FS, fsys.OS)
		r.layout = ocilayout.New(root, r.fs)
		err = r.run(ctx)
		found = r.found
		return err
	})
	return found, err
}

// rebuild is one call of Run.
type rebuild struct {
	root, path string // path is the database's
	opts       Options
	fs         fsys.FS
	lock       *rootlock.Lock
	layout     *ocilayout.Layout
	daemon     bool // the root is a daemon's
	found      Found

	old     *metadata.Salvaged
	blobs   *content.Recovered
	dirs    *layer.Recovered
	index   []ocispec.Descriptor // of index.json
	badFile bool                 // index.json cannot be read, or not to its end
	named   bool                 // images.records names all images
}

func (r *rebuild) run(ctx context.Context) (err error) {
	r.step("reading the former database")
	if r.old, err = r.salvage(); err != nil {
		return err
	}
	if err := r.readCopies(ctx); err != nil {
		return err
	}
	r.index, err = r.layout.Images()
	if r.badFile = err != nil; r.badFile && !r.old.Complete && !r.named {
		log.G(ctx).WithError(err).Warn("rebuild: index.json")
	}
	r.step("comparing blobs with their digests")
	if r.blobs, err = content.Recover(ctx, r.root); err != nil {
		return err
	}
	r.step("comparing layers and root filesystems with their seals")
	if r.dirs, err = layer.Recover(ctx, r.root); err != nil {
		return err
	}
	if r.opts.Unattended {
		if err := r.mayGoOn(); err != nil {
			return err
		}
	}
	r.daemon = r.daemon || r.hadDaemon()
	r.step("writing the new database")
	p := newPlan(r)
	p.fill(ctx)
	// What the records call durable has to be on the disk.
	if err := r.lock.Sync(); err != nil {
		return err
	}
	built := r.path + ".new"
	if err := metadata.Build(built, &metadata.Options{FS: r.fs}, p.write); err != nil {
		return err
	}
	if err := r.setAside(p); err != nil {
		return errors.Join(err, r.fs.Remove(built))
	}
	if err := r.replace(built); err != nil {
		return err
	}
	r.found.Names = r.old.Complete || r.named || !r.badFile || len(r.blobs.Blobs) == 0
	if r.badFile { // the next opening would refuse to replace a file that is not regular or too large
		return r.layout.Remove()
	}
	return nil
}

func (r *rebuild) step(what string) {
	if r.opts.Progress != nil {
		r.opts.Progress(what)
	}
}

// mayGoOn returns errdefs.ErrFailedPrecondition if an unattended rebuild would take a disk that is not mounted, or
// that fails, for lost and damaged things.
func (r *rebuild) mayGoOn() error {
	if err := cmp.Or(r.blobs.Failed, r.dirs.Failed); err != nil {
		return fmt.Errorf("rebuild: the disk can't be read: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	written, layered := 0, 0
	for _, s := range r.old.Snapshots {
		if s.Entry() != "" {
			written++
		}
		if s.Layer != "" {
			layered++
		}
	}
	for _, pool := range []struct {
		name      string
		here      int
		recorded  int
		whichKind string
	}{
		{"blobs", len(r.blobs.Blobs) + len(r.blobs.Damaged), max(len(r.old.Blobs), len(r.old.Images), len(r.index)),
			"blobs or images"},
		{"layers", len(r.dirs.Layers) + len(r.dirs.BrokenLayers), max(len(r.old.Layers), layered), "layers"},
		{"rootfs", len(r.dirs.Rootfs) + len(r.dirs.BrokenRootfs), len(r.old.Rootfs), "root filesystems"},
		{"snapshots", len(r.dirs.Snapshots), written, "snapshots"},
	} {
		if pool.here == 0 && pool.recorded > 0 {
			return fmt.Errorf("rebuild: the directory %s is empty, but records name %d %s: a file system may not be "+
				"mounted there: %w", pool.name, pool.recorded, pool.whichKind, errdefs.ErrFailedPrecondition)
		}
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
			e.Complete, e.AllHolds = false, false // it does not know what came later
			return e, nil
		}
	}
	return s, nil
}

// readCopies adds what the copies of records beside the database say, unless the database has no fault.
func (r *rebuild) readCopies(ctx context.Context) error {
	if r.old.Complete {
		return nil
	}
	var err error
	if r.named, err = r.readFile(ctx, copies.Images, r.old.AddImage); err != nil {
		return err
	}
	if _, err := r.readFile(ctx, copies.Bindings, r.old.AddBinding); err != nil {
		return err
	}
	snapshots, err := record.Recover(ctx, r.root)
	if err != nil {
		return err
	}
	for _, s := range snapshots.Records {
		r.addSnapshot(s)
	}
	return nil
}

// addSnapshot adds a snapshot and its holders, unless a later record has its key or its directory. An earlier one is
// replaced.
func (r *rebuild) addSnapshot(added record.Record) {
	same := func(other metadata.Snapshot) bool {
		return other.Key == added.Key || added.Entry() != "" && other.Entry() == added.Entry()
	}
	if slices.ContainsFunc(r.old.Snapshots, func(other metadata.Snapshot) bool {
		return same(other) && !other.Updated.Before(added.Updated)
	}) {
		return
	}
	r.old.Snapshots = append(slices.DeleteFunc(r.old.Snapshots, same), added.Snapshot)
	for _, h := range added.Holders {
		r.old.Holds = append(r.old.Holds, metadata.Hold{Holder: h, Node: metadata.SnapshotNode(added.Key)})
	}
}

// readFile calls add with each record in a file of records. whole is true if it has all of them, and they are valid.
func (r *rebuild) readFile(ctx context.Context, name string, add func([]byte) bool) (whole bool, err error) {
	records, whole, err := copies.Read(r.root, name)
	if errdefs.IsFailedPrecondition(err) {
		return false, err
	}
	for _, b := range records {
		whole = add(b) && whole
	}
	if err != nil || !whole {
		log.G(ctx).WithError(err).Warnf("rebuild: %s is missing or damaged: %d records of it are used", name,
			len(records))
	}
	return whole, nil
}

// hadDaemon reports whether something in the root shows that a containerd used it.
func (r *rebuild) hadDaemon() bool {
	return len(r.old.Facts["flag/"+metadata.FlagDaemon]) > 0 || len(r.dirs.Snapshots) > 0 ||
		slices.ContainsFunc(r.old.Holds, func(h metadata.Hold) bool { return h.Holder.IsContainerd() })
}

// setAside moves below lost/ what no record was made of: a later collection would take it for garbage. A
// copy of an index.json that can't be read goes there as well. All of that reaches the disk before the new
// database is in place.
func (r *rebuild) setAside(p *plan) error {
	names := map[string]string{}
	for _, path := range r.blobs.Damaged {
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
	all := filepath.Join(r.root, "lost")
	lost := filepath.Join(all, time.Now().UTC().Format("20060102T150405.000000000"))
	for _, dir := range []string{all, lost} {
		if err := r.mkdir(dir); err != nil {
			return err
		}
	}
	if r.found.LostIn = lost; len(names) == 0 {
		r.found.LostIn = ""
	}
	changed := map[string]bool{r.root: true, all: true, lost: true}
	for _, from := range slices.Sorted(maps.Keys(names)) {
		if err := r.moveAside(from, filepath.Join(lost, names[from]), changed); err != nil {
			return err
		}
	}
	if len(index) > 0 {
		if err := r.layout.WriteText(lost, index); err != nil {
			return err
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(changed)) {
		if err := r.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory that may exist.
func (r *rebuild) mkdir(dir string) error {
	if err := r.fs.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// moveAside moves what lies on the root's file system. In a pool on another disk it stays, under a name
// that is no entry of the pool and that no collection looks at. It adds the directories that it changes to changed.
func (r *rebuild) moveAside(from, to string, changed map[string]bool) error {
	changed[filepath.Dir(from)] = true
	err := r.fs.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		lost := filepath.Join(filepath.Dir(from), "lost+found")
		if err := r.mkdir(lost); err != nil {
			return err
		}
		changed[lost] = true
		return r.fs.Rename(from, filepath.Join(lost, filepath.Base(filepath.Dir(to))+"-"+filepath.Base(to)))
	}
	return err
}

// replace puts the new database in the place of the former one, which is kept unless it has no bytes.
func (r *rebuild) replace(built string) error {
	fi, err := os.Lstat(r.path)
	if err == nil && (fi.Size() > 0 || !fi.Mode().IsRegular()) {
		if err := r.keep(fi); err != nil {
			return errors.Join(err, r.fs.Remove(built))
		}
	}
	if err := r.fs.Rename(built, r.path); err != nil {
		return errors.Join(err, r.fs.Remove(built))
	}
	return r.fs.SyncDir(r.root)
}

// keep gives the former database the first free name of metadata.db.old, metadata.db.old.1 and so on, unless a
// rebuild that was killed gave it one. A database that was whole gets only the first of these names or none,
// because the new one has all its records. Where the file system has hard links, the former database also stays
// in its place, so that the root is never without a database.
func (r *rebuild) keep(former os.FileInfo) error {
	for n := 0; n == 0 || !r.old.Complete; n++ {
		to := r.path + ".old"
		if n > 0 {
			to = fmt.Sprintf("%s.old.%d", r.path, n)
		}
		if fi, err := os.Lstat(to); err == nil {
			if os.SameFile(fi, former) {
				r.found.Former = to
				return nil
			}
			continue
		}
		r.found.Former = to
		if former.Mode().IsRegular() {
			if err := r.fs.Link(r.path, to); err == nil {
				return nil
			}
		}
		return r.fs.Rename(r.path, to)
	}
	return nil
}
