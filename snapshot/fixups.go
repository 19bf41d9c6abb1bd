package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// ensureFixup finds out what a committed snapshot's layer needs above its parent, makes it, and records it. The
// snapshots below must have theirs. It returns the record as it is then.
func (s *Store) ensureFixup(ctx context.Context, key string) (metadata.Snapshot, error) {
	defer s.locks.lock(key)()
	sn, err := s.snapshot(key)
	if err != nil || sn.Fixup != "" || sn.Layer == "" {
		return sn, err
	}
	rec, err := s.layer(sn.Layer)
	if err != nil {
		return sn, err
	}
	fixup := metadata.NoFixup
	staged, made := "", metadata.Layer{}
	if rec.Needs {
		p, err := s.planFor(ctx, sn, rec)
		if err != nil {
			return sn, fmt.Errorf("snapshot %s: %w", key, err)
		}
		defer p.close()
		if !p.empty() {
			fixup = metadata.FixupKey(p.facts(rec.DiffID))
			if _, err := s.layer(fixup); err != nil {
				if staged, made, err = s.build(p.plan); err != nil {
					return sn, fmt.Errorf("snapshot %s: fix-up: %w", key, err)
				}
			}
			made.Key = fixup
		}
	}
	return s.recordFixup(key, fixup, staged, made, func(sn *metadata.Snapshot) { sn.Fixup = fixup })
}

// recordFixup puts a fix-up from staging into its place, unless it is there already, and has the snapshot stand on it.
func (s *Store) recordFixup(key, fixup, staged string, made metadata.Layer, set func(*metadata.Snapshot)) (sn metadata.Snapshot, err error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	moved := ""
	err = s.db.Update(func(tx *metadata.Tx) error {
		if sn, err = tx.Snapshot(key); err != nil {
			return err
		}
		set(&sn)
		if err := tx.PutSnapshot(sn); err != nil || fixup == metadata.NoFixup {
			return err
		}
		if _, err := tx.Layer(fixup); err != nil {
			id, err := tx.NextID()
			if err != nil {
				return err
			}
			made.Dir = strconv.FormatUint(id, 10)
			moved = s.path("layers", made.Dir)
			if err := os.Rename(staged, moved); err != nil {
				return err
			}
			if err := tx.PutLayer(made); err != nil {
				return err
			}
		}
		return tx.Hold(metadata.SnapshotHolder(key), metadata.LayerNode(fixup))
	})
	switch {
	case err != nil && moved != "":
		err = errors.Join(err, s.trash(moved))
	case moved != "":
		s.syncer.add(metadata.LayerNode(fixup))
	case staged != "":
		err = errors.Join(err, s.trash(staged))
	}
	return sn, err
}

// openPlan is a plan with the directories it reads.
type openPlan struct {
	*plan
	self *os.File
}

func (p *openPlan) close() {
	p.parent.close()
	p.self.Close()
}

// planFor plans the fix-up of a snapshot's layer above the snapshot's parent.
func (s *Store) planFor(ctx context.Context, sn metadata.Snapshot, rec metadata.Layer) (*openPlan, error) {
	st, err := s.stack(ctx, sn.Parent)
	if err != nil {
		return nil, err
	}
	if rec, err = s.trustLayer(ctx, rec); err != nil {
		return nil, err
	}
	return s.openPlanOf(s.path("layers", rec.Dir), rec.Key, st.dirs)
}

func (s *Store) openPlanOf(layerDir, key string, below []stackDir) (*openPlan, error) {
	entries, err := readSeal(filepath.Join(layerDir, "seal"))
	if err != nil {
		return nil, err
	}
	self, err := os.Open(filepath.Join(layerDir, "fs"))
	if err != nil {
		return nil, err
	}
	parent, err := openMerged(below)
	if err != nil {
		self.Close()
		return nil, err
	}
	p, err := planFixup(entries, &element{key, self}, parent, s.opts.Unpack.Unprivileged)
	if err != nil {
		parent.close()
		self.Close()
		return nil, err
	}
	return &openPlan{p, self}, nil
}

// stageFixup makes the fix-up, or the root directory, that a snapshot stands on once more, in staging.
func (s *Store) stageFixup(ctx context.Context, sn metadata.Snapshot, key string) (string, error) {
	if sn.Root == key {
		st, err := s.stack(ctx, sn.Parent)
		if err != nil {
			return "", err
		}
		staged, _, err := s.buildTree(newTree([]unpack.Entry{st.root}), nil)
		return staged, err
	}
	rec, err := s.layer(sn.Layer)
	if err != nil {
		return "", err
	}
	p, err := s.planFor(ctx, sn, rec)
	if err != nil {
		return "", err
	}
	defer p.close()
	staged, _, err := s.build(p.plan)
	return staged, err
}

// build makes a planned fix-up in staging and seals it.
func (s *Store) build(p *plan) (staged string, rec metadata.Layer, err error) {
	return s.buildTree(p.out, p.copies)
}

func (s *Store) buildTree(t *tree, copies map[string]source) (staged string, rec metadata.Layer, err error) {
	staged = s.stage("fixup")
	defer func() {
		if err != nil {
			err = errors.Join(err, s.trash(staged))
			staged = ""
		}
	}()
	fs := filepath.Join(staged, "fs")
	if err := errors.Join(os.Mkdir(staged, 0o700), os.Mkdir(fs, 0o755)); err != nil {
		return staged, rec, err
	}
	root, err := os.Open(fs)
	if err != nil {
		return staged, rec, err
	}
	defer root.Close()
	b := builder{copies: copies, userXattr: s.opts.UserXattr, made: map[string]*unpack.Entry{}, rec: &rec, root: root}
	if err := b.fill(root, t); err != nil {
		return staged, rec, err
	}
	entries := t.entries()
	regroup(entries)
	rec.Created = time.Now().UTC()
	return staged, rec, writeSeal(filepath.Join(staged, "seal"), entries, true)
}

// builder makes a tree on disk.
type builder struct {
	root      *os.File
	copies    map[string]source
	userXattr bool
	made      map[string]*unpack.Entry // group of hard links -> the first that was made
	rec       *metadata.Layer          // what was made is counted here
}

// fill makes what is in a directory, then sets the directory's own attributes.
func (b *builder) fill(dir *os.File, t *tree) error {
	whiteouts := false
	for _, name := range t.names() {
		k := t.kids[name]
		whiteouts = whiteouts || k.entry.Type == unpack.Whiteout
		if err := b.make(dir, name, k); err != nil {
			return err
		}
	}
	if whiteouts {
		b.rec.Whiteouts = true
		if err := unpack.SetOrigin(dir, b.userXattr); err != nil {
			return err
		}
	}
	if t.entry.Opaque {
		b.rec.Whiteouts = true
		if err := unpack.SetOpaque(dir, b.userXattr); err != nil {
			return err
		}
	}
	b.rec.Inodes++
	return unpack.SetAttrsOf(dir, &t.entry)
}

func (b *builder) make(dir *os.File, name string, t *tree) error {
	if first := b.made[t.entry.Inode]; first != nil {
		t.entry.Hash, t.entry.Size = first.Hash, first.Size
		return linkAt(b.root, first.Path, dir, name)
	}
	var content *os.File
	if src, ok := b.copies[t.entry.Path]; ok && t.entry.Type == unpack.File {
		f, err := openFile(src.elem.root, src.path)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f
		if t.entry.Hash, err = hashFile(f); err != nil {
			return err
		}
	}
	if err := makeNode(dir, name, &t.entry, content); err != nil {
		return err
	}
	b.rec.Size += t.entry.Size
	if t.entry.Inode != "" {
		b.made[t.entry.Inode] = &t.entry
	}
	if t.entry.Type != unpack.Dir {
		b.rec.Inodes++
		return nil
	}
	sub, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	return b.fill(sub, t)
}

// stackDir is one directory of a stack, and the name that stands for its content.
type stackDir struct {
	name string
	path string
}

// stack is what a snapshot's children stand on: directories, topmost first, and the attributes of the root directory.
type stack struct {
	dirs      []stackDir
	root      unpack.Entry
	rootFrom  int  // which of dirs shows the root directory as it has to be; -1: none
	whiteouts bool // the only directory holds whiteouts
}

// stack returns what stands below a child of the committed snapshot key, after its fix-ups were made. No stack for "".
func (s *Store) stack(ctx context.Context, key string) (*stack, error) {
	chain, err := s.chain(key)
	if err != nil {
		return nil, err
	}
	for i := len(chain) - 1; i >= 0; i-- { // from the bottom up: a fix-up looks at the stack below
		if chain[i].Layer != "" && chain[i].Fixup == "" {
			if chain[i], err = s.ensureFixup(ctx, chain[i].Key); err != nil {
				return nil, err
			}
		}
	}
	b := stackBuilder{s: s, st: &stack{root: defaultDir("."), rootFrom: -1}, seen: map[string]bool{}}
	for _, sn := range chain {
		if err := b.add(ctx, sn); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", sn.Key, err)
		}
	}
	return b.st, b.readRoot()
}

// chain lists a snapshot and its ancestors.
func (s *Store) chain(key string) (chain []metadata.Snapshot, err error) {
	err = s.db.View(func(tx *metadata.Tx) error {
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
	hidden   bool   // a layer above hides the rest
}

func (b *stackBuilder) add(ctx context.Context, sn metadata.Snapshot) error {
	if sn.Layer == "" {
		b.push("snapshot/"+sn.Dir, b.s.path("snapshots", sn.Dir, "fs"), true, true)
		return nil
	}
	if sn.Fixup != metadata.NoFixup && !b.hidden {
		rec, err := b.s.layer(sn.Fixup)
		if err != nil {
			return err
		}
		if rec, err = b.s.trustLayer(ctx, rec); err != nil {
			return err
		}
		b.push(rec.Key, b.s.path("layers", rec.Dir, "fs"), false, rec.Whiteouts)
	}
	rec, err := b.s.layer(sn.Layer)
	if err != nil {
		return err
	}
	if rec, err = b.s.trustLayer(ctx, rec); err != nil {
		return err
	}
	dir := b.s.path("layers", rec.Dir, "fs")
	if rec.Empty {
		if rec.Root && b.rootPath == "" {
			b.rootPath = dir
		}
		return nil
	}
	b.push(rec.Key, dir, rec.Root, rec.Whiteouts)
	b.hidden = b.hidden || rec.OpaqueRoot
	return nil
}

// push adds a directory below the others. One that is there already adds nothing, and overlay refuses it.
func (b *stackBuilder) push(name, dir string, root, whiteouts bool) {
	if root && b.rootPath == "" {
		b.rootPath = dir
		if !b.seen[dir] && !b.hidden {
			b.st.rootFrom = len(b.st.dirs)
		}
	}
	if b.seen[dir] || b.hidden {
		return
	}
	b.seen[dir] = true
	b.st.dirs = append(b.st.dirs, stackDir{name, dir})
	b.st.whiteouts = len(b.st.dirs) == 1 && whiteouts
}

// readRoot reads the attributes of the root directory.
func (b *stackBuilder) readRoot() error {
	if b.rootPath == "" {
		return nil
	}
	f, err := os.Open(b.rootPath)
	if err != nil {
		return err
	}
	defer f.Close()
	e, err := unpack.ReadEntry(f, ".")
	if err != nil {
		return err
	}
	b.st.root = *e
	return nil
}

// viewRoot makes the record of the directory that a view needs on top for the root directory's attributes, or because
// overlay shows a single directory's whiteouts; "" when it needs none.
func (st *stack) viewRoot() string {
	e := st.root
	shown := st.rootFrom == 0 || (st.rootFrom < 0 && difference(&e, &defaultRoot) == "")
	if shown && !(len(st.dirs) == 1 && st.whiteouts) {
		return ""
	}
	e.Implied, e.Opaque, e.Seq = false, false, 0
	return metadata.FixupKey(digest.FromBytes(append([]byte("root\n"), appendEntry(nil, &e)...)))
}

var defaultRoot = defaultDir(".")

// linkAt links the path from below root to name in dir.
func linkAt(root *os.File, from string, dir *os.File, name string) error {
	d, err := openDirPath(root, path.Dir(from))
	if err != nil {
		return err
	}
	defer d.Close()
	return pathError("link", from, unix.Linkat(int(d.Fd()), path.Base(from), int(dir.Fd()), name, 0))
}

// openDirPath opens a directory below root component by component.
func openDirPath(root *os.File, p string) (*os.File, error) {
	d, err := openDir(root, ".")
	if err != nil || p == "." {
		return d, err
	}
	for c := range strings.SplitSeq(p, "/") {
		next, err := openDir(d, c)
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}
