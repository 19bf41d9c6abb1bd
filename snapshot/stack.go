package snapshot

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// snapshotDir begins the name of what a snapshot's directory holds.
const snapshotDir = "snapshot/"

// stack is what a snapshot's children stand on: directories, topmost first, and the attributes of the root directory.
type stack struct {
	dirs      []overlay.Dir
	root      unpack.Entry
	rootFrom  int  // which of dirs shows the root directory as it has to be; -1: none
	rootSaid  bool // whether a layer or snapshot has an entry for the root directory
	whiteouts bool // the only directory holds whiteouts
	// provisional says that some of it may not be on the disk yet.
	provisional bool
}

// stack returns what stands below a child of the committed snapshot key, after its fix-ups were made. No stack for "".
func (s *Store) stack(ctx context.Context, key string) (*stack, error) {
	chain, err := s.chain(key)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(chain, func(sn metadata.Snapshot) bool { return sn.FullCopy }); i >= 0 {
		chain = chain[:i+1] // which shows nothing of what is below it
	}
	for i := len(chain) - 1; i >= 0; i-- { // from the bottom up: a fix-up looks at the stack below
		if chain[i].Layer != "" && chain[i].Fixup == "" {
			if chain[i], err = s.ensureFixup(ctx, chain[i].Key); err != nil {
				return nil, err
			}
		}
	}
	b := stackBuilder{s: s, st: &stack{root: s.usualRoot(), rootFrom: -1}, seen: map[string]bool{}}
	for _, sn := range chain {
		if err := b.add(ctx, sn); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", sn.Key, err)
		}
	}
	return b.st, b.readRoot()
}

// chain lists a snapshot and its ancestors.
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

// stackBuilder gathers a stack from the topmost snapshot down.
type stackBuilder struct {
	s        *Store
	st       *stack
	seen     map[string]bool
	rootPath string // the directory whose root directory counts; empty while none was found
	layered  bool   // that directory is a layer's
	hidden   bool   // a layer above hides the rest
}

func (b *stackBuilder) add(ctx context.Context, sn metadata.Snapshot) error {
	if sn.Dir != "" { // with a layer, what was written after it was applied
		b.push(snapshotDir+sn.Dir, b.s.path("snapshots", sn.Dir, "fs"), true, !sn.FullCopy)
	}
	if sn.Layer == "" {
		return nil
	}
	if sn.Fixup != metadata.NoFixup && !b.hidden {
		rec, err := b.s.layer(sn.Fixup)
		if err != nil {
			return err
		}
		if rec, err = b.s.servable(ctx, rec); err != nil {
			return err
		}
		b.push(rec.Key, b.s.path("layers", rec.Dir, "fs"), false, rec.Whiteouts)
		b.st.provisional = b.st.provisional || !rec.Durable
	}
	rec, err := b.s.layer(sn.Layer)
	if err != nil {
		return err
	}
	if rec, err = b.s.servable(ctx, rec); err != nil {
		return err
	}
	dir := b.s.path("layers", rec.Dir, "fs")
	if rec.Empty {
		if rec.HasRootEntry && b.rootPath == "" {
			b.rootPath, b.layered = dir, true
		}
		return nil
	}
	b.push(rec.Key, dir, rec.HasRootEntry, rec.Whiteouts)
	b.st.provisional = b.st.provisional || !rec.Durable
	b.hidden = b.hidden || rec.OpaqueRoot
	return nil
}

// push adds a directory below the others. One that is there already adds nothing, and overlay refuses it.
func (b *stackBuilder) push(name, dir string, root, whiteouts bool) {
	if root && b.rootPath == "" {
		b.rootPath, b.layered = dir, !strings.HasPrefix(name, snapshotDir)
		if !b.seen[dir] && !b.hidden {
			b.st.rootFrom = len(b.st.dirs)
		}
	}
	if b.seen[dir] || b.hidden {
		return
	}
	b.seen[dir] = true
	b.st.dirs = append(b.st.dirs, overlay.Dir{Name: name, Path: dir, Live: strings.HasPrefix(name, snapshotDir)})
	b.st.whiteouts = len(b.st.dirs) == 1 && whiteouts
}

// readRoot reads the attributes of the root directory. Those that a layer has for it count no more here than with
// containerd's overlayfs, where the root directory is the snapshotter's own: only its time is taken over. A rootfs has
// all of them (docs/adr/0027).
func (b *stackBuilder) readRoot() error {
	if b.rootPath == "" {
		return nil
	}
	f, err := nodes.OpenRoot(b.rootPath)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := f.Entry(".")
	if err != nil {
		return err
	}
	b.st.rootSaid = true
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

// viewRoot makes the record of the directory that a view needs on top for the root directory's attributes, because overlay
// shows a single directory's whiteouts, or because containerd remaps no read-only bind; "" when it needs none.
func (st *stack) viewRoot(remap bool) string {
	e := st.root
	shown := st.rootFrom == 0 || !st.rootSaid
	if shown && (len(st.dirs) != 1 || !st.whiteouts && !remap) {
		return ""
	}
	e.Implied, e.Opaque, e.Seq = false, false, 0
	return metadata.FixupKey(digest.FromBytes(append([]byte("root\n"), tree.AppendEntry(nil, &e)...)))
}

// usualRoot is the root directory when no layer says anything of it.
func (s *Store) usualRoot() unpack.Entry {
	root := tree.DefaultDir(".")
	if s.opts.Unpack.Unprivileged {
		root.UID, root.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	return root
}
