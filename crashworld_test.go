package tank_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// crashImage is an image of the crash tests.
type crashImage struct {
	blobs   [][]byte
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
	digest  digest.Digest
	tree    []string // lines of List for its rootfs
}

// chain returns the names of the image's snapshots, the lowest first.
func (i *crashImage) chain() (names []string) {
	for _, id := range identity.ChainIDs(slices.Clone(i.diffIDs)) {
		names = append(names, id.String())
	}
	return names
}

// crashLayers are the images of the crash tests. They share a layer. The second one has a layer
// that needs a fix-up, because it has a hard link to a lower layer.
var crashLayers = [][][]Item{
	{base, {W("d/.wh.a"), F("d/n", "3")}},
	{base, {H("d/l", "b"), D("e").Mode(0o700)}},
	{base, {F("big", strings.Repeat("0123456789abcdef", 700)), S("s", "big")}},
}

// crashImages has the images in a registry of its own.
type crashImages struct {
	reg    *registrytest.Registry
	images []*crashImage
}

func newCrashImages(t *testing.T) *crashImages {
	t.Helper()
	c := &crashImages{reg: registrytest.New(t)}
	for n, layers := range crashLayers {
		i := &crashImage{}
		for _, items := range layers {
			raw, blob, desc := layerOf(t, items...)
			c.reg.Blob(desc.MediaType, blob)
			i.blobs, i.layers = append(i.blobs, blob), append(i.layers, desc)
			i.diffIDs = append(i.diffIDs, digest.FromBytes(raw))
		}
		c.images = append(c.images, i)
		c.push("b", n)
		i.digest = c.reg.Image("", platforms.DefaultSpec(), i.layers, i.diffIDs).Digest
		r := newRoot(t, false)
		img, err := r.pull(t, c.ref("b"), nil)
		must(t, err)
		i.tree = list(t, img.Rootfs)
	}
	return c
}

// push lets a tag name an image.
func (c *crashImages) push(tag string, n int) {
	c.reg.Image(tag, platforms.DefaultSpec(), c.images[n].layers, c.images[n].diffIDs)
}

func (c *crashImages) ref(tag string) string { return c.reg.Host + "/x:" + tag }

// facts is what calls have acknowledged.
type facts struct {
	images    map[string]int // by tag
	snapshots map[string]snapshotFact
}

type snapshotFact struct {
	kind    snapshots.Kind
	parent  string
	image   int    // whose layers are below, -1 for none
	depth   int    // how many of them
	written string // the name of a file that a commit has acknowledged
}

func (f facts) clone() facts { return facts{maps.Clone(f.images), maps.Clone(f.snapshots)} }

// crashOp is an operation of a history.
type crashOp struct {
	name string
	do   func(w *crashWorld) error // may be repeated
	// The facts before and after the operation. What differs, and what touches names, may be either while the
	// operation is under way.
	before, after facts
	touches       []string // tags and keys of snapshots
	damages       bool     // the operation begins with damage by another program
	ready         func(c *crashImages)
}

// crashWorld is a root in which operations run.
type crashWorld struct {
	*crashImages
	dir     string
	daemon  bool
	fs      fsys.FS
	changed func(path string) error // records what a container writes; nil: nobody records
	tk      *tank.Tank
}

func (w *crashWorld) open() error {
	tk, err := tank.Open(w.dir, &tank.Options{Daemon: w.daemon, FS: w.fs})
	if err == nil {
		w.tk = tk
	}
	return err
}

func (w *crashWorld) close() error {
	tk := w.tk
	w.tk = nil
	if tk == nil {
		return nil
	}
	return tk.Close()
}

// crashKinds are the kinds of operations of the histories.
var crashKinds = []string{"pull", "unpack", "commit", "prepare", "remove", "gc", "tag", "repair"}

// planOp chooses the details of an operation, given what is acknowledged before it.
func planOp(c *crashImages, kind string, n int, f facts, rng *rand.Rand) crashOp {
	op := crashOp{before: f, after: f.clone(), name: kind}
	switch kind {
	case "pull":
		op.planPull([]string{"a", "b"}[rng.IntN(2)], rng.IntN(len(c.images)), rng.IntN(2) == 0)
	case "tag":
		old, ok := f.images["a"]
		if !ok {
			old = rng.IntN(len(c.images))
		}
		op.planPull("a", (old+1)%len(c.images), false)
	case "unpack":
		op.planUnpack(c, rng.IntN(len(c.images)))
	case "prepare":
		op.planPrepare(fmt.Sprint("c", n), rng)
	case "commit":
		op.planCommit(n, rng)
	case "remove":
		op.planRemove(rng)
	case "gc":
		op.do = func(w *crashWorld) error {
			_, err := w.tk.GC(context.Background())
			return err
		}
	case "repair":
		op.planRepair(rng, len(c.images))
	}
	return op
}

func (op *crashOp) planPull(tag string, image int, keep bool) {
	if old, ok := op.before.images[tag]; ok && keep {
		image = old
	}
	op.name += fmt.Sprintf(" %s=%d", tag, image)
	op.touches = []string{tag}
	op.after.images[tag] = image
	op.ready = func(c *crashImages) { c.push(tag, image) }
	op.do = func(w *crashWorld) error {
		_, err := w.tk.Pull(context.Background(), w.ref(tag), nil)
		return err
	}
}

// planUnpack is what containerd does to pull an image.
func (op *crashOp) planUnpack(c *crashImages, image int) {
	op.name += fmt.Sprintf(" %d", image)
	parent := ""
	for depth, name := range c.images[image].chain() {
		if _, ok := op.after.snapshots[name]; !ok {
			op.after.snapshots[name] = snapshotFact{snapshots.KindCommitted, parent, image, depth + 1, ""}
		}
		op.touches = append(op.touches, name)
		parent = name
	}
	op.do = func(w *crashWorld) error {
		err := w.unpack(image)
		if errdefs.IsFailedPrecondition(err) {
			// A power cut has damaged bytes of a download, whose commit found and deleted them. The next pull
			// begins that download again.
			err = w.unpack(image)
		}
		return err
	}
}

func (w *crashWorld) unpack(image int) error {
	ctx := context.Background()
	i := w.images[image]
	store, sn := w.tk.Content().For(metadata.Containerd), w.tk.Snapshots().For(metadata.Containerd)
	chain := i.chain()
	parent := ""
	for n, desc := range i.layers {
		if err := content.WriteBlob(ctx, store, "layer-"+desc.Digest.String(), strings.NewReader(string(i.blobs[n])),
			desc); err != nil {
			return err
		}
		name := chain[n]
		if _, err := sn.Stat(ctx, name); err == nil {
			parent = name
			continue
		}
		key := "extract " + name
		mounts, err := sn.Prepare(
			ctx,
			key,
			parent,
			snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": name}),
		)
		if errdefs.IsAlreadyExists(err) { // containerd removes what an earlier process left, and begins again
			if err = sn.Remove(ctx, key); err == nil {
				mounts, err = sn.Prepare(
					ctx,
					key,
					parent,
					snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": name}),
				)
			}
		}
		if err != nil {
			return err
		}
		if _, err := w.tk.Snapshots().Apply(ctx, desc, mounts); err != nil {
			return err
		}
		if err := sn.Commit(ctx, name, key); err != nil {
			return err
		}
		parent = name
	}
	return nil
}

// planPrepare prepares a container above the top of an image, if there is one.
func (op *crashOp) planPrepare(key string, rng *rand.Rand) {
	made := snapshotFact{kind: snapshots.KindActive, image: -1}
	var tops []string
	for _, name := range slices.Sorted(maps.Keys(op.before.snapshots)) {
		if op.before.snapshots[name].kind == snapshots.KindCommitted {
			tops = append(tops, name)
		}
	}
	if len(tops) > 0 {
		made.parent = tops[rng.IntN(len(tops))]
		made.image, made.depth = op.before.snapshots[made.parent].image, op.before.snapshots[made.parent].depth
	}
	op.name += " " + key
	op.touches, op.after.snapshots[key] = []string{key}, made
	op.do = func(w *crashWorld) error {
		_, err := w.tk.Snapshots().For(metadata.Containerd).Prepare(context.Background(), key, made.parent)
		return ignore(err, errdefs.ErrAlreadyExists)
	}
}

// ignore returns nil for an error of this class.
func ignore(err, class error) error {
	if errors.Is(err, class) {
		return nil
	}
	return err
}

// planCommit commits a container after it has written a file; a new one, if there is none.
func (op *crashOp) planCommit(n int, rng *rand.Rand) {
	key := ""
	for _, name := range slices.Sorted(maps.Keys(op.before.snapshots)) {
		if op.before.snapshots[name].kind == snapshots.KindActive {
			key = name
		}
	}
	prepare := func(*crashWorld) error { return nil }
	if key == "" {
		key = fmt.Sprint("c", n)
		op.planPrepare(key, rng)
		prepare = op.do
	}
	name, file := fmt.Sprint("m", n), fmt.Sprint("w", n)
	op.name = "commit " + name
	op.touches = append(op.touches, key, name)
	made := op.after.snapshots[key]
	delete(op.after.snapshots, key)
	made.kind, made.written = snapshots.KindCommitted, file
	op.after.snapshots[name] = made
	op.do = func(w *crashWorld) error {
		ctx := context.Background()
		sn := w.tk.Snapshots().For(metadata.Containerd)
		if _, err := sn.Stat(ctx, name); err == nil {
			return nil
		}
		if err := prepare(w); err != nil {
			return err
		}
		mounts, err := sn.Mounts(ctx, key)
		if err != nil {
			return err
		}
		upper := upperOf(mounts)
		err = os.WriteFile(filepath.Join(upper, file), []byte(strings.Repeat(file, 1000)), 0o644)
		if err == nil && w.changed != nil {
			err = w.changed(filepath.Join(upper, file))
		}
		if err != nil {
			return err
		}
		return sn.Commit(ctx, name, key)
	}
}

// upperOf returns the directory that a container writes to.
func upperOf(mounts []mount.Mount) string {
	for _, o := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			return upper
		}
	}
	return mounts[0].Source
}

// planRemove removes an image or a snapshot that has no children; nothing, if there is neither.
func (op *crashOp) planRemove(rng *rand.Rand) {
	all := slices.Sorted(maps.Keys(op.before.images))
	images := len(all)
	parents := map[string]bool{}
	for _, s := range op.before.snapshots {
		parents[s.parent] = true
	}
	for _, name := range slices.Sorted(maps.Keys(op.before.snapshots)) {
		if !parents[name] {
			all = append(all, name)
		}
	}
	if len(all) == 0 {
		op.do = func(w *crashWorld) error {
			return ignore(w.tk.Remove(context.Background(), w.ref("a")), errdefs.ErrNotFound)
		}
		return
	}
	n := rng.IntN(len(all))
	name := all[n]
	op.touches = []string{name}
	op.name += " " + name
	if n < images {
		delete(op.after.images, name)
		op.do = func(w *crashWorld) error {
			return ignore(w.tk.Remove(context.Background(), w.ref(name)), errdefs.ErrNotFound)
		}
		return
	}
	delete(op.after.snapshots, name)
	op.do = func(w *crashWorld) error {
		return ignore(w.tk.Snapshots().For(metadata.Containerd).Remove(context.Background(), name), errdefs.ErrNotFound)
	}
}

// planRepair pulls an image with Refresh, after another program has removed a file of its rootfs.
func (op *crashOp) planRepair(rng *rand.Rand, images int) {
	tags := slices.Sorted(maps.Keys(op.before.images))
	if len(tags) == 0 {
		op.planPull("a", rng.IntN(images), false)
		return
	}
	tag := tags[rng.IntN(len(tags))]
	image := op.before.images[tag]
	op.planPull(tag, image, true)
	op.touches, op.damages = tags, true // another tag may have the same rootfs
	op.do = func(w *crashWorld) error {
		ctx := context.Background()
		d := w.images[image].digest
		file := filepath.Join(w.dir, "rootfs", d.Algorithm().String(), d.Encoded(), "b")
		if err := os.Remove(file); err == nil && w.changed != nil {
			if err := w.changed(filepath.Dir(file)); err != nil {
				return err
			}
		}
		_, err := w.tk.Pull(ctx, w.ref(tag), &tank.PullOptions{Refresh: true})
		return err
	}
}

// checkFacts checks that a root has everything that was acknowledged, and that everything that it has is served intact.
// Of what is in loose, any of several states is right.
func (w *crashWorld) checkFacts(t *testing.T, f facts, loose []string) error {
	ctx := context.Background()
	infos, err := w.tk.Images(ctx)
	if err != nil {
		return err
	}
	have := map[string]digest.Digest{}
	for _, i := range infos {
		if tag, ok := strings.CutPrefix(i.Ref, w.reg.Host+"/x:"); ok && !i.Untagged {
			have[tag] = i.Digest
		}
	}
	for _, tag := range []string{"a", "b"} {
		want, ok := f.images[tag]
		got, is := have[tag]
		if !slices.Contains(loose, tag) && (ok != is || ok && got != w.images[want].digest) {
			return fmt.Errorf("image %s: is %q, and %d (%v) was acknowledged", tag, got, want, ok)
		}
		if is {
			if err := w.checkRootfs(t, tag, got); err != nil {
				return err
			}
		}
	}
	return w.checkSnapshots(t, f, loose)
}

func (w *crashWorld) checkRootfs(t *testing.T, tag string, d digest.Digest) error {
	n := slices.IndexFunc(w.images, func(i *crashImage) bool { return i.digest == d })
	if n < 0 {
		return fmt.Errorf("image %s: %s is unknown", tag, d)
	}
	img, err := w.tk.Pull(context.Background(), w.ref(tag), &tank.PullOptions{Offline: true})
	if err != nil {
		return fmt.Errorf("image %s: %w", tag, err)
	}
	return sameTree("image "+tag, w.images[n].tree, list(t, img.Rootfs))
}

func sameTree(what string, want, got []string) error {
	if slices.Equal(want, got) {
		return nil
	}
	return fmt.Errorf("%s: want\n\t%s\ngot\n\t%s", what, strings.Join(want, "\n\t"), strings.Join(got, "\n\t"))
}

func (w *crashWorld) checkSnapshots(t *testing.T, f facts, loose []string) error {
	ctx := context.Background()
	sn := w.tk.Snapshots().For(metadata.Containerd)
	for key, want := range f.snapshots {
		if slices.Contains(loose, key) {
			continue
		}
		got, err := sn.Stat(ctx, key)
		if err != nil {
			return err
		}
		if got.Kind != want.kind || got.Parent != want.parent {
			return fmt.Errorf(
				"snapshot %s: is %v above %q, was %v above %q",
				key,
				got.Kind,
				got.Parent,
				want.kind,
				want.parent,
			)
		}
		var mounts []mount.Mount
		if want.kind == snapshots.KindCommitted {
			view := "view of " + key
			mounts, err = sn.View(ctx, view, key)
			defer func() { _ = sn.Remove(ctx, view) }()
		} else {
			mounts, err = sn.Mounts(ctx, key)
		}
		if err != nil {
			return err
		}
		if want.image < 0 {
			if err := w.checkShown(t, key, mounts, nil, want.written); err != nil {
				return err
			}
		} else if want.depth == len(w.images[want.image].layers) {
			if err := w.checkShown(t, key, mounts, w.images[want.image].tree, want.written); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkShown compares what mounts show with a tree and an acknowledged file. Other files of containers may be there.
func (w *crashWorld) checkShown(t *testing.T, key string, mounts []mount.Mount, tree []string, written string) error {
	at := w.dir + ".mnt"
	must(t, os.MkdirAll(at, 0o700))
	if err := mount.All(mounts, at); err != nil {
		return fmt.Errorf("snapshot %s: mount: %w", key, err)
	}
	lines := list(t, at)
	var data []byte
	var err error
	if written != "" {
		data, err = os.ReadFile(filepath.Join(at, written))
	}
	must(t, mount.UnmountAll(at, 0))
	if err != nil || string(data) != strings.Repeat(written, 1000) && written != "" {
		return fmt.Errorf("snapshot %s: committed file %s: %d bytes, %w", key, written, len(data), err)
	}
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "w") || strings.HasPrefix(l, ". dir")
	})
	return sameTree("snapshot "+key, tree, lines)
}

// checkNoLeak compares the files of a closed root with its records.
func checkNoLeak(dir string) error {
	db, err := metadata.Open(filepath.Join(dir, "metadata.db"), &metadata.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	known := map[string]bool{}
	err = db.View(func(tx *metadata.Tx) error {
		for _, key := range tx.Keys(metadata.KindBlob, "", -1) {
			known["blobs/"+strings.Replace(key, ":", "/", 1)] = true
		}
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			l, err := tx.Layer(key)
			if err != nil {
				return err
			}
			known["layers/"+l.Dir] = true
		}
		for _, key := range tx.Keys(metadata.KindRootfs, "", -1) {
			known["rootfs/"+strings.Replace(key, ":", "/", 1)] = true
			known["rootfs/"+strings.Replace(key, ":", "/", 1)+".seal"] = true
		}
		for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
			sn, err := tx.Snapshot(key)
			if err != nil {
				return err
			}
			known["snapshots/"+sn.Entry()] = true
		}
		for _, h := range tx.AllHolders() {
			if kind, _ := h.Split(); kind == metadata.HolderPull {
				return fmt.Errorf("holder %s is left", h)
			}
		}
		return nil
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case rel == ".", slices.Contains(crashDirs, rel), slices.Contains(crashFiles, rel):
			return nil
		case rel == "reserve":
			return fs.SkipDir
		case !known[rel]:
			return fmt.Errorf("%s is left without a record", rel)
		}
		delete(known, rel)
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// crashDirs and crashFiles are what every root has.
var (
	crashDirs = []string{
		"blobs", "blobs/sha256", "ingest", "layers", "rootfs", "rootfs/sha256", "snapshots", "staging",
	}
	crashFiles = []string{"tank-root", "oci-layout", "index.json", "images.records", "metadata.db", "lock"}
)

// provisional reports whether a database has a record of the node that is provisional.
func provisional(t *testing.T, database []byte, n metadata.Node) (is bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "metadata.db")
	must(t, os.WriteFile(path, database, 0o600))
	db, err := metadata.Open(path, &metadata.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	must(t, db.View(func(tx *metadata.Tx) error {
		switch n.Kind {
		case metadata.KindLayer:
			l, err := tx.Layer(n.Key)
			is = err == nil && !l.Durable
		case metadata.KindRootfs:
			r, err := tx.Rootfs(digest.Digest(n.Key))
			is = err == nil && !r.Durable
		}
		return nil
	}))
	return is
}

// checkCrashed checks a root after a crash, while op was under way or, if it is nil, after the last operation. f is
// what was acknowledged.
func (w *crashWorld) checkCrashed(t *testing.T, f facts, op *crashOp) (err error) {
	ctx := context.Background()
	database, _ := os.ReadFile(filepath.Join(w.dir, "metadata.db"))
	if err := w.open(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var loose []string
	if op != nil {
		loose = op.touches
	}
	var wrong []error
	mends := false // a durable record of a snapshot is damaged, which the background mends
	if err := w.tk.Check(ctx, func(fault tank.Fault) {
		var inner metadata.Fault
		errors.As(fault.Err, &inner)
		switch {
		case inner.Mend == metadata.MendRecord:
			mends = true
			return
		case provisional(t, database, inner.Node), op != nil && op.damages && fault.What == "rootfs":
			return
		}
		wrong = append(wrong, fmt.Errorf("a durable %s is damaged: %w", fault.What, fault))
	}); err != nil || len(wrong) > 0 {
		return errors.Join(append(wrong, err)...)
	}
	if op == nil || !op.damages {
		if err := w.checkFacts(t, f, loose); err != nil {
			return fmt.Errorf("after opening: %w", err)
		}
	}
	if op != nil {
		if op.ready != nil {
			op.ready(w.crashImages)
		}
		if err := op.do(w); err != nil {
			return fmt.Errorf("%s, once more: %w", op.name, err)
		}
		f = op.after
		if err := w.checkFacts(t, f, nil); err != nil {
			return fmt.Errorf("after %s, once more: %w", op.name, err)
		}
	}
	if _, err := w.tk.GC(ctx); err != nil {
		return fmt.Errorf("gc: %w", err)
	}
	if err := w.checkClean(mends); err != nil {
		return err
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if checkNoLeak(w.dir) == nil {
		return nil
	}
	// What the background was deleting is deleted after the next opening.
	if err := w.open(); err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	if _, err := w.tk.GC(ctx); err != nil {
		return fmt.Errorf("gc again: %w", err)
	}
	return errors.Join(w.close(), checkNoLeak(w.dir))
}

// checkClean checks that Check finds nothing. If mends is true, the background may need a second to mend the durable
// records of snapshots.
func (w *crashWorld) checkClean(mends bool) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var wrong []error
		waits := false
		err := w.tk.Check(context.Background(), func(fault tank.Fault) {
			var inner metadata.Fault
			if mends && errors.As(fault.Err, &inner) && inner.Mend == metadata.MendRecord {
				waits = true
			}
			wrong = append(wrong, fault)
		})
		if err == nil && len(wrong) == 0 {
			return nil
		}
		if !waits || time.Now().After(end) {
			return fmt.Errorf("check at the end: %w", errors.Join(append(wrong, err)...))
		}
	}
}
