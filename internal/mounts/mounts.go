// Package mounts finds out whether directories of a root are mounted anywhere on the machine.
//
// It owns nothing on disk. Its invariant: a directory that a container of any mount namespace runs on is
// found, as far as this user may look into that namespace. The surprising rule: it reads mount tables and
// no records, because mounts stay when a daemon or a database is gone.
package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Using returns a mount point that uses one of the directories, which are "layers/ID" and "snapshots/ID"
// below the root; "" if there is none. A mount uses a directory as its source, or in the options of
// overlay.
func Using(root string, dirs []string) (string, error) {
	if len(dirs) == 0 {
		return "", nil
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(root)
	if err != nil {
		return "", err
	}
	// A bind mount shows the path of its source in the source's file system. The mount that the root lies
	// on tells where the root is in there.
	var on *mountinfo.Info
	for _, m := range all {
		if below(resolved, m.Mountpoint) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	for _, m := range append(all, elsewhere()...) {
		var used []string
		if on != nil && m.Major == on.Major && m.Minor == on.Minor {
			used = find(nil, m.Root+"/", filepath.Join(on.Root, strings.TrimPrefix(resolved, on.Mountpoint)))
		}
		if m.FSType == "overlay" {
			used = find(find(used, m.VFSOptions, root), m.VFSOptions, resolved)
		}
		if slices.ContainsFunc(used, func(dir string) bool { return slices.Contains(dirs, dir) }) {
			return m.Mountpoint, nil
		}
	}
	return "", nil
}

// find appends to found the directories below root that occur in text.
func find(found []string, text, root string) []string {
	for _, pool := range []string{"snapshots", "layers"} {
		prefix := filepath.Join(root, pool) + "/"
		for rest := text; ; {
			_, after, ok := strings.Cut(rest, prefix)
			if !ok {
				break
			}
			if id, _, ok := strings.Cut(after, "/"); ok {
				found = append(found, pool+"/"+id)
			}
			rest = after
		}
	}
	return found
}

// elsewhere returns the mounts of other mount namespaces: each container has one, and containerd may have
// its own. It leaves out namespaces that this user cannot look into.
func elsewhere() (all []*mountinfo.Info) {
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
