package snapshot

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// stack is what the children of a snapshot stand on.
type stack struct {
	dirs      []overlay.Dir // topmost first
	root      entry.Entry   // the attributes of the root directory
	rootFrom  int           // index in dirs of a directory with those attributes; -1: none
	rootSet   bool          // a layer or a snapshot has an entry for the root directory
	whiteouts bool          // there is one directory, and it may contain whiteouts
	// provisional means that the bytes of a layer may not be on the disk yet.
	provisional bool
}

// stack returns the stack below a child of the committed snapshot key, an empty one for "". It makes missing fix-ups.
func (s *Store) stack(ctx context.Context, key string) (*stack, error) {
	chain, err := s.chain(key)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(chain, func(sn metadata.Snapshot) bool { return sn.FullCopy }); i >= 0 {
		chain = chain[:i+1] // a full copy hides what is below it
	}
	for i := len(chain) - 1; i >= 0; i-- { // from the bottom up: a fix-up depends on the stack below it
		if chain[i].Layer != "" && chain[i].Fixup == "" {
			if chain[i], err = s.ensureFixup(ctx, chain[i].Key); err != nil {
				return nil, err
			}
		}
	}
	b := stackBuilder{s: s, st: &stack{root: s.layers.DefaultRoot(), rootFrom: -1}, seen: map[string]bool{}}
	for _, sn := range chain {
		if err := b.add(ctx, sn); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", sn.Key, err)
		}
	}
	return b.st, b.readRoot()
}

// chain returns the records of a snapshot and its ancestors, nearest first.
func (s *Store) chain(key string) (chain []metadata.Snapshot, err error) {
	err = s.db.ViewPending(func(tx *metadata.Tx) error {
		for key != "" {
			sn, err := tx.Snapshot(key)
			if err != nil {
				return err
			}
			chain = append(chain, sn)
			key = sn.Parent
		}
		return nil
	})
	return chain, err
}

// stackBuilder collects a stack from the topmost snapshot down.
type stackBuilder struct {
	s       *Store
	st      *stack
	seen    map[string]bool              // paths of the directories in the stack
	root    func() (*entry.Entry, error) // reads the topmost entry of the root directory; nil while none was found
	layered bool                         // root reads the entry of a layer
	hidden  bool                         // a layer that was added hides all directories below it
}

// add adds the directories of one snapshot: its own one, the fix-up and the layer.
func (b *stackBuilder) add(ctx context.Context, sn metadata.Snapshot) error {
	if sn.Dir != "" { // above the snapshot's layer: it was written after the layer was applied
		d := overlay.Dir{Name: "snapshot/" + sn.Dir, Path: b.s.path("snapshots", sn.Dir, "fs"), Live: true}
		b.push(d, func() (*entry.Entry, error) { return rootEntry(d.Path) }, !sn.FullCopy)
	}
	if sn.Layer == "" {
		return nil
	}
	if sn.Fixup != metadata.NoFixup && !b.hidden {
		rec, err := b.s.layers.Servable(ctx, sn.Fixup)
		if err != nil {
			return err
		}
		b.push(b.s.layers.Lower(rec), nil, rec.Whiteouts)
		b.st.provisional = b.st.provisional || !rec.Durable
	}
	rec, err := b.s.layers.Servable(ctx, sn.Layer)
	if err != nil {
		return err
	}
	var root func() (*entry.Entry, error)
	if rec.HasRootEntry {
		root = func() (*entry.Entry, error) { return b.s.layers.Root(rec) }
	}
	if rec.Empty {
		if root != nil && b.root == nil {
			b.root, b.layered = root, true
		}
		return nil
	}
	b.push(b.s.layers.Lower(rec), root, rec.Whiteouts)
	b.st.provisional = b.st.provisional || !rec.Durable
	b.hidden = b.hidden || rec.OpaqueRoot
	return nil
}

// push adds a directory below the others. root reads the entry of its root directory; nil means that the directory has
// no entry for it. whiteouts means that it may contain whiteouts. push leaves out a directory that is in the stack
// already: below itself it changes nothing, and overlay refuses to mount it twice.
func (b *stackBuilder) push(d overlay.Dir, root func() (*entry.Entry, error), whiteouts bool) {
	if root != nil && b.root == nil {
		b.root, b.layered = root, !d.Live
		if !b.seen[d.Path] && !b.hidden {
			b.st.rootFrom = len(b.st.dirs)
		}
	}
	if b.seen[d.Path] || b.hidden {
		return
	}
	b.seen[d.Path] = true
	b.st.dirs = append(b.st.dirs, d)
	b.st.whiteouts = len(b.st.dirs) == 1 && whiteouts
}

// readRoot reads the attributes of the root directory. From a layer's entry it takes only the time, as containerd's
// overlayfs snapshotter does, which makes the root directory itself. An assembled rootfs, in contrast, has all
// attributes of that entry (docs/adr/0027-entries-that-others-take.md).
func (b *stackBuilder) readRoot() error {
	if b.root == nil {
		return nil
	}
	e, err := b.root()
	if err != nil {
		return err
	}
	b.st.rootSet = true
	if !b.layered {
		b.st.root = *e
		return nil
	}
	b.st.root.Sec, b.st.root.Nsec = e.Sec, e.Nsec
	b.st.root.Opaque = e.Opaque // opacity is not an attribute of the root directory
	if tree.Differ(&b.st.root, e) {
		b.st.rootFrom = -1
	}
	return nil
}

// viewRoot returns the key of the root directory that a view needs on top of the stack, "" if it needs none. A view
// needs one if the topmost directory of the stack does not have the right attributes. It also needs one if the stack
// is a single directory, which would be bind-mounted, in two cases: the directory has whiteouts, which a bind mount
// shows as devices; or remap is set, and containerd does not remap a read-only bind mount.
func (st *stack) viewRoot(remap bool) string {
	e := st.root
	topShowsRoot := st.rootFrom == 0 || !st.rootSet
	if topShowsRoot && (len(st.dirs) != 1 || !st.whiteouts && !remap) {
		return ""
	}
	e.Implied, e.Opaque, e.Seq = false, false, 0
	return metadata.FixupKey(digest.FromBytes(append([]byte("root\n"), tree.AppendEntry(nil, &e)...)))
}

// rootEntry returns the entry of the directory dir itself, with the path ".".
func rootEntry(dir string) (*entry.Entry, error) {
	f, err := nodes.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Entry(".")
}
