package binding

import (
	"context"
	"slices"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/metadata"
)

// former is a holder for which no containerd acts now, with the names of its snapshots.
type former struct {
	holder metadata.Holder
	path   string   // where the database of its containerd was; "": unknown
	active []string // keys of containers' snapshots and of views
	others []string // keys of committed snapshots
}

// maxKeys is how many of a holder's snapshots are read at most, to search a database for their keys.
const maxKeys = 10000

// candidates lists the holders that have the snapshot key and every snapshot that the session named before, and for
// which no containerd acts.
func (s *Session) candidates(ctx context.Context, tx *metadata.Tx, key string) (fs []former, err error) {
	bs, err := metadata.Bindings(tx)
	if err != nil {
		return nil, err
	}
	seen := map[metadata.Holder]bool{s.binding.Holder: true}
	for _, r := range append(bs, metadata.Binding{Holder: metadata.Containerd}) { // which may have no binding
		h := r.Holder
		if seen[h] || s.suspects != nil && !slices.Contains(s.suspects, h) ||
			!tx.Holds(h, metadata.SnapshotNode(h.SnapshotKey(key))) {
			continue
		}
		seen[h] = true
		r, _ = metadata.BindingOf(bs, h)
		r.Holder = h
		if s.b.inUse(r, s) {
			log.G(ctx).WithFields(log.Fields{"key": key, "holder": h}).
				Warn("the snapshot belongs to another containerd, which is running")
			continue
		}
		f := former{holder: h, path: r.Path}
		for _, k := range tx.Held(h, metadata.KindSnapshot, "", maxKeys) {
			sn, err := tx.Snapshot(k)
			if err != nil {
				return nil, err
			}
			if name := h.SnapshotName(k); sn.Kind == metadata.Committed {
				f.others = append(f.others, name)
			} else {
				f.active = append(f.active, name)
			}
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// mentioned searches the session's database for keys that only one of the holders fs has. If it finds keys of one
// holder, it returns this holder. It returns all of fs if it finds keys of none or of several, or if the database can't
// be read.
func (s *Session) mentioned(ctx context.Context, fs []former) []former {
	var exclusive [][]string
	for i, f := range fs {
		keys := slices.DeleteFunc(slices.Concat(f.active, f.others), func(k string) bool {
			for j, o := range fs {
				if i != j && (slices.Contains(o.active, k) || slices.Contains(o.others, k)) {
					return true
				}
			}
			return false
		})
		exclusive = append(exclusive, keys)
	}
	found, ok := s.search(ctx, slices.Concat(exclusive...))
	if !ok {
		return fs
	}
	var known []former
	for i, f := range fs {
		if slices.ContainsFunc(exclusive[i], func(k string) bool { return found[k] }) {
			known = append(known, f)
		}
	}
	if len(known) != 1 {
		return fs
	}
	return known
}

// descends reports whether the session's database can be the one whose containerd used the holder f, or a copy of it.
// Two databases whose first pull was of the same image have the same keys for that image, but each has only the keys of
// its own containers. So the database must have the key of an active snapshot of f, or half of the keys if f has no
// active snapshot. A database at the former path is accepted: it was restored, and may be older than the containers. A
// database that can't be read is accepted too.
func (s *Session) descends(ctx context.Context, f former) bool {
	if s.file.Inode == 0 || f.path == s.file.Path {
		return true
	}
	found, ok := s.search(ctx, slices.Concat(f.active, f.others))
	if !ok {
		return true
	}
	mentions := func(k string) bool { return found[k] }
	if len(f.active) > 0 {
		return slices.ContainsFunc(f.active, mentions)
	}
	n := 0
	for _, k := range f.others {
		if mentions(k) {
			n++
		}
	}
	return 2*n >= len(f.others)
}

// search looks for keys in the file of the session's database. ok is false if the file can't be read.
func (s *Session) search(ctx context.Context, keys []string) (found map[string]bool, ok bool) {
	if s.file.Inode == 0 {
		return nil, false
	}
	keys = slices.DeleteFunc(keys, func(k string) bool {
		_, _, ok := metadata.Sequence(k)
		return !ok
	})
	found, err := s.b.opts.Mentions(ctx, s.file, keys)
	if err != nil {
		log.G(ctx).
			WithError(err).
			WithField("database", s.file.Path).
			Warn("the database of a containerd can't be searched")
		return nil, false
	}
	return found, true
}
