package snapshot

import (
	"context"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/tank-snapshotter/tank/metadata"
)

// mounts says how to mount a snapshot that stands on st. Nothing here mounts: containerd does.
func (s *Store) mounts(ctx context.Context, sn metadata.Snapshot, st *stack) ([]mount.Mount, error) {
	ids, err := s.idMaps(sn)
	if err != nil {
		return nil, err
	}
	ms, err := s.plainMounts(ctx, sn, st)
	if err != nil || ids.empty() {
		return ms, err
	}
	if sn.Kind == metadata.View && sn.Dir != "" {
		// containerd remaps no read-only bind: this one becomes read-only when it is remapped.
		fs := s.path("snapshots", sn.Dir, "fs")
		ms = append(bind(fs, "rw"), mount.Mount{Type: "bind", Source: fs, Options: []string{"remount", "bind", "ro"}})
	}
	ms[0].Options = append(ids.options(), ms[0].Options...)
	return ms, nil
}

func (s *Store) plainMounts(ctx context.Context, sn metadata.Snapshot, st *stack) ([]mount.Mount, error) {
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
	case sn.Kind == metadata.Active && len(lower) == 0 && requestOf(sn.Key, sn.Labels).rebases(s.opts.UserXattr):
		// A layer that containerd unpacks above a parent that it names only at the commit. It must look like overlay, or
		// whoever applies the layer loses its whiteouts; nobody mounts it.
		return s.overlay("workdir="+s.path("snapshots", sn.Dir, "work"), "upperdir="+fs), nil
	case sn.Kind == metadata.Active && len(lower) == 0:
		return bind(fs, "rw"), nil
	case sn.Kind == metadata.Active:
		return s.overlay("workdir="+s.path("snapshots", sn.Dir, "work"), "upperdir="+fs, "lowerdir="+strings.Join(lower, ":")), nil
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

// stagedMounts are those of a snapshot for which a known layer stands. That the last is read-only says so to containerd
// 2.4: it neither fetches nor applies anything, and commits.
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
		always = append(always, "index=off") // the same lower directories serve many mounts at once
	}
	if s.opts.UserXattr {
		always = append(always, "userxattr")
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(always, options...)}}
}

// hasIndex says whether overlay knows the option index.
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
