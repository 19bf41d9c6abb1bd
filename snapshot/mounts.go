package snapshot

import (
	"context"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/tank-snapshotter/tank/metadata"
)

// mounts returns the mounts of the snapshot sn, which stands on st and was made for r, with the ID mappings ids.
// containerd makes them.
func (s *Store) mounts(ctx context.Context, sn metadata.Snapshot, r Request, st *stack, ids idMaps) (
	[]mount.Mount, error,
) {
	ms, err := s.plainMounts(ctx, sn, r, st)
	if err != nil || ids.empty() {
		return ms, err
	}
	if sn.Kind == metadata.View && sn.Dir != "" {
		// containerd does not remap a read-only bind. So this one is writable until it has been remapped.
		fs := s.path("snapshots", sn.Dir, "fs")
		ms = append(bind(fs, "rw"), mount.Mount{Type: "bind", Source: fs, Options: []string{"remount", "bind", "ro"}})
	}
	ms[0].Options = append(ids.options(), ms[0].Options...)
	return ms, nil
}

func (s *Store) plainMounts(ctx context.Context, sn metadata.Snapshot, r Request, st *stack) (
	[]mount.Mount, error,
) {
	fs := s.path("snapshots", sn.Dir, "fs")
	switch {
	case sn.FullCopy && sn.Kind == metadata.View:
		return bind(fs, "ro"), nil
	case sn.FullCopy:
		return bind(fs, "rw"), nil
	}
	lower := st.paths()
	if sn.Kind == metadata.Active && sn.Dir != "" && sn.Layer != "" { // a layer was applied
		rec, err := s.layers.Intact(ctx, sn.Layer)
		if err != nil {
			return nil, err
		}
		if !rec.Empty {
			lower = append([]string{s.layers.Lower(rec).Path}, lower...)
		}
	}
	switch {
	case sn.Kind == metadata.Active && sn.Dir == "":
		return s.stagedMounts(ctx, sn)
	case sn.Kind == metadata.Active && len(lower) == 0 && r.rebases(s.opts.UserXattr):
		// containerd unpacks a layer and names its parent only at the commit. The mount must look like
		// one of overlay, or the differ that applies the layer drops its whiteouts. It is never
		// mounted.
		return s.overlay("workdir="+s.path("snapshots", sn.Dir, "work"), "upperdir="+fs), nil
	case sn.Kind == metadata.Active && len(lower) == 0:
		return bind(fs, "rw"), nil
	case sn.Kind == metadata.Active:
		return s.overlay("workdir="+s.path("snapshots", sn.Dir, "work"), "upperdir="+fs,
			"lowerdir="+strings.Join(lower, ":")), nil
	case len(lower) == 0:
		return bind(fs, "ro"), nil
	}
	if sn.ViewRoot != "" {
		rec, err := s.layers.Intact(ctx, sn.ViewRoot)
		if err != nil {
			return nil, err
		}
		lower = append([]string{s.layers.Lower(rec).Path}, lower...)
	}
	if len(lower) == 1 {
		return bind(lower[0], "ro"), nil
	}
	return s.overlay("lowerdir=" + strings.Join(lower, ":")), nil
}

// stagedMounts returns the mounts of a snapshot that stands on a known layer and has no directory. A last mount that is
// read-only tells containerd 2.4 to commit without downloading or applying anything.
func (s *Store) stagedMounts(ctx context.Context, sn metadata.Snapshot) ([]mount.Mount, error) {
	rec, err := s.layers.Intact(ctx, sn.Layer)
	if err != nil {
		return nil, err
	}
	return bind(s.layers.Lower(rec).Path, "ro"), nil
}

func bind(source, mode string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{mode, "rbind"}}}
}

func (s *Store) overlay(options ...string) []mount.Mount {
	var always []string
	if hasIndex() {
		always = append(always, "index=off") // the same lower directories are in many mounts at once
	}
	if s.opts.UserXattr {
		always = append(always, "userxattr")
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(always, options...)}}
}

// hasIndex reports whether the kernel's overlay has the option index.
var hasIndex = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/module/overlay/parameters/index")
	return err == nil
})

func (st *stack) paths() []string {
	paths := make([]string, len(st.dirs))
	for i, d := range st.dirs {
		paths[i] = d.Path
	}
	return paths
}
