package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/budget"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/overlay"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// IsFixup reports whether the key of a layer record is that of a fix-up.
func IsFixup(key string) bool { return strings.HasPrefix(key, "fixup/") }

// Plan is what a layer needs above a stack, with the directories that the plan reads.
type Plan struct {
	plan  *overlay.Plan
	dirs  []*os.File
	claim *budget.Claim // memory of the plan
}

// Plan finds out what a layer needs above a stack, topmost directory first. The layer is compared with its seal before,
// if there is doubt. It returns stream.ErrInvalidLayer if the layer is invalid above this stack.
func (s *Store) Plan(ctx context.Context, key string, below []overlay.Dir) (*Plan, error) {
	rec, err := s.Intact(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.plan(ctx, s.at.entry(rec.Dir), rec, below)
}

// plan is Plan for a layer whose directory is at the path entry.
func (s *Store) plan(ctx context.Context, entry string, rec metadata.Layer, below []overlay.Dir) (_ *Plan, err error) {
	p := &Plan{claim: s.memory.Claim(nil)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	l, err := p.open(ctx, entry, rec)
	if err != nil {
		return nil, err
	}
	l.NewDir = s.DefaultRoot()
	parent, err := overlay.OpenMerged(below)
	if err != nil {
		return nil, err
	}
	rights := s.opts.Unpack
	p.plan, err = overlay.PlanFixup(ctx, l, parent, rights.Unprivileged || rights.Confined, func(bytes int64) error {
		return p.claim.Grow(ctx, bytes)
	})
	if err != nil {
		parent.Close()
		p.plan = nil
		return nil, err
	}
	if rights.Unprivileged {
		p.plan.Tree.SetOwner(uint32(os.Geteuid()), uint32(os.Getegid()))
	}
	return p, nil
}

// open opens what a plan reads of a layer.
func (p *Plan) open(ctx context.Context, entry string, rec metadata.Layer) (l overlay.Layer, err error) {
	open := func(name string) (*os.File, error) {
		f, err := nodes.OpenTree(filepath.Join(entry, name))
		if err == nil {
			p.dirs = append(p.dirs, f)
		}
		return f, err
	}
	sealed, err := tree.OpenSeal(ctx, filepath.Join(entry, "seal"))
	if err != nil {
		return l, err
	}
	self, err := open("fs")
	if err != nil {
		return l, err
	}
	l.Entries, l.Self = sealed.Each, &overlay.Element{Name: rec.Key, Root: self}
	if !rec.Ordered {
		return l, nil
	}
	if l.Steps, err = tree.OpenOrder(ctx, entry); err != nil {
		return l, err
	}
	aside, err := open(tree.AsideName)
	if err == nil {
		l.Aside = &overlay.Element{Name: tree.AsideName, Root: aside}
	} else if !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	return l, nil
}

// Empty reports whether the layer needs no fix-up.
func (p *Plan) Empty() bool { return p.plan.Empty() }

// Key returns the key of the fix-up of the layer with this diff ID. Plans with equal content have equal keys.
func (p *Plan) Key(diffID digest.Digest) string { return metadata.FixupKey(p.plan.Facts(diffID)) }

// Close closes the directories and returns the memory. The plan can't be built afterwards.
func (p *Plan) Close() {
	for _, d := range p.dirs {
		d.Close()
	}
	if p.plan != nil {
		p.plan.Parent.Close()
	}
	p.claim.Release()
}

// Built is a fix-up that was built and sealed, and has no position and no record yet.
type Built struct {
	staged string
	record metadata.Layer
}

// Build builds a planned fix-up.
func (s *Store) Build(ctx context.Context, p *Plan) (*Built, error) {
	staged := s.dir.Stage(rootdir.Layers, "fixup")
	rec, err := s.build(ctx, staged, p.plan.Tree, p.plan.Copies)
	return &Built{staged, rec}, err
}

// BuildRoot builds an empty directory that has the attributes root. It is recorded like a fix-up.
func (s *Store) BuildRoot(ctx context.Context, root entry.Entry) (*Built, error) {
	staged := s.dir.Stage(rootdir.Layers, "fixup")
	rec, err := s.build(ctx, staged, tree.New(root), nil)
	return &Built{staged, rec}, err
}

// build makes t in the new directory staged, and seals it. After an error nothing of it is left.
func (s *Store) build(ctx context.Context, staged string, t *tree.Node, copies map[string]overlay.Source) (
	rec metadata.Layer, err error,
) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.dir.Trash(staged))
		}
	}()
	err = s.dir.Build(staged, func() error {
		fs := filepath.Join(staged, "fs")
		if err := os.Mkdir(fs, 0o755); err != nil {
			return err
		}
		made, entries, err := overlay.Build(ctx, fs, t, copies, s.opts.UserXattr)
		if err != nil {
			return err
		}
		rec = metadata.Layer{
			PlainMarks: made.PlainMarks, Whiteouts: made.Whiteouts, Inodes: made.Inodes, Size: made.Size,
			Created: time.Now().UTC(),
		}
		return tree.WriteSeal(filepath.Join(staged, "seal"), rec, len(entries), tree.ListOf(entries), true)
	}, nil)
	return rec, err
}

// ErrReleased is returned by Attach for a fix-up that had a record and has lost its last holder since.
var ErrReleased = errors.New("released meanwhile")

// Attach calls record in a transaction in which holder holds the fix-up key afterwards. b is what was built for it, nil
// if it had a record. If there is a record when b is to get one, b is deleted.
func (s *Store) Attach(holder metadata.Holder, key string, b *Built, record func(*metadata.Tx) error) error {
	used := false
	var rec metadata.Layer
	attach := func(tx *metadata.Tx, dir string) (bool, error) {
		used = false
		if err := record(tx); err != nil {
			return false, err
		}
		if _, err := tx.Layer(key); err != nil {
			if dir == "" {
				return false, ErrReleased
			}
			used, rec = true, b.record
			rec.Key, rec.Dir = key, dir
			if err := tx.PutLayer(rec); err != nil {
				return false, err
			}
		}
		return used, tx.Hold(holder, metadata.LayerNode(key))
	}
	if b == nil {
		return s.db.Update(func(tx *metadata.Tx) error {
			_, err := attach(tx, "")
			return err
		})
	}
	err := s.dir.Place(rootdir.Entry{Kind: metadata.KindLayer, Staged: b.staged}, attach)
	if err == nil && used {
		s.syncer.Add(metadata.LayerNode(key), rec.Dir)
	}
	return err
}

// DefaultRoot is the root directory of a stack in which no layer has an entry for it.
func (s *Store) DefaultRoot() entry.Entry {
	root := tree.DefaultDir(".")
	if s.opts.Unpack.Unprivileged {
		root.UID, root.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	return root
}
