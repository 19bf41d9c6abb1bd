package tank

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/tank-snapshotter/tank/metadata"
)

// notMounted returns errdefs.ErrFailedPrecondition while something that only h holds is mounted anywhere, because
// containers run on it. A mount has the root's directories as its source or in overlay's options.
func (t *Tank) notMounted(h metadata.Holder) error {
	own := map[string]bool{}
	if err := t.db.View(func(tx *metadata.Tx) (err error) {
		own, err = directories(tx, h)
		return err
	}); err != nil || len(own) == 0 {
		return err
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	root, err := filepath.EvalSymlinks(t.root)
	if err != nil {
		return err
	}
	// The mount that the root lies on has the root's path inside its file system, which bind mounts show.
	var on *mountinfo.Info
	for _, m := range mounts {
		if below(root, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	for _, m := range append(mounts, mountsElsewhere()...) {
		var named []string
		if on != nil && m.Major == on.Major && m.Minor == on.Minor {
			named = namedIn(nil, m.Root+"/", filepath.Join(on.Root, strings.TrimPrefix(root, on.Mountpoint)))
		}
		if m.FSType == "overlay" {
			named = namedIn(namedIn(named, m.VFSOptions, t.root), m.VFSOptions, root)
		}
		if slices.ContainsFunc(named, func(dir string) bool { return own[dir] }) {
			return fmt.Errorf("mounted at %s: %w", m.Mountpoint, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// directories are those below the root, as "snapshots/ID" and "layers/ID", that are deleted when h releases what it
// holds.
func directories(tx *metadata.Tx, h metadata.Holder) (map[string]bool, error) {
	own := map[metadata.Holder]bool{h: true}
	alone := func(n metadata.Node) bool {
		return !slices.ContainsFunc(tx.Holders(n), func(other metadata.Holder) bool { return !own[other] })
	}
	keys := tx.Held(h, metadata.KindSnapshot, "", -1)
	dirs := map[string]bool{}
	for _, key := range keys {
		if !alone(metadata.SnapshotNode(key)) {
			continue
		}
		s, err := tx.Snapshot(key)
		if err != nil {
			return nil, err
		}
		own[metadata.SnapshotHolder(key)] = true
		dirs["snapshots/"+s.Dir] = s.Dir != ""
	}
	for _, key := range keys {
		for _, l := range tx.Held(metadata.SnapshotHolder(key), metadata.KindLayer, "", -1) {
			if !alone(metadata.LayerNode(l)) {
				continue
			}
			rec, err := tx.Layer(l)
			if err != nil {
				return nil, err
			}
			dirs["layers/"+rec.Dir] = true
		}
	}
	return dirs, nil
}

// namedIn adds to named the directories of pools below root that occur in text, as "snapshots/ID" and "layers/ID".
func namedIn(named []string, text, root string) []string {
	for _, pool := range []string{"snapshots", "layers"} {
		prefix := filepath.Join(root, pool) + "/"
		for rest := text; ; {
			_, after, found := strings.Cut(rest, prefix)
			if !found {
				break
			}
			if id, _, ok := strings.Cut(after, "/"); ok {
				named = append(named, pool+"/"+id)
			}
			rest = after
		}
	}
	return named
}

// mountsElsewhere lists the mounts of other mount namespaces: each container has one, and containerd may have its own.
// Namespaces that an ordinary user can't look into are left out.
func mountsElsewhere() (all []*mountinfo.Info) {
	seen := map[string]bool{}
	if own, err := os.Readlink("/proc/self/ns/mnt"); err == nil {
		seen[own] = true
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join(p, "ns", "mnt"))
		if err != nil || seen[ns] {
			continue
		}
		f, err := os.Open(filepath.Join(p, "mountinfo"))
		if err != nil {
			continue
		}
		mounts, err := mountinfo.GetMountsFromReader(f, nil)
		f.Close()
		if err == nil {
			seen[ns] = true
			all = append(all, mounts...)
		}
	}
	return all
}

// below reports whether path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
