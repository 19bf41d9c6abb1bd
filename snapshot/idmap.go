package snapshot

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// idMaps reads the labels that ask for remapped ids. They count only outside extraction, because there they may come from
// the image; not above what containerd changed the owners of itself, because it passes them on all the same; and not inside a user
// namespace, where nobody can mount with remapped ids. ok is false when nothing is to be remapped; errdefs.ErrInvalidArgument when
// a label is malformed: it becomes a mount option, so nothing of it is passed on that is not understood.
func (s *Store) idMaps(sn metadata.Snapshot) (uids, gids idmap.Map, ok bool, err error) {
	u, g := sn.Labels[snapshots.LabelSnapshotUIDMapping], sn.Labels[snapshots.LabelSnapshotGIDMapping]
	if (u == "" && g == "") || sn.Remapped || s.opts.UserXattr || sn.Labels[snapshots.LabelSnapshotRef] != "" || isExtraction(sn.Key) {
		return nil, nil, false, nil
	}
	if uids, err = idmap.Parse(u); err == nil {
		gids, err = idmap.Parse(g)
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("snapshot %s: %w", sn.Key, err)
	}
	return uids, gids, true, nil
}

// isExtraction says that containerd unpacks a layer into the snapshot: "<ns>/<seq>/extract-<unique> <chain ID>". No name of a container
// has a space.
func isExtraction(key string) bool {
	name := key[strings.LastIndexByte(key, '/')+1:]
	return strings.HasPrefix(name, "extract-") && strings.Contains(name, " ")
}

// remapsItself says that containerd, which was not told of the capability remap-ids, changed the owners of what it commits: it
// prepared "<digest>-remap" and commits it as "<digest>".
func remapsItself(key, name string) bool { return path.Base(key) == path.Base(name)+"-remap" }

// hostID maps an id; one without a place in the namespace becomes the namespace's root.
func hostID(m idmap.Map, id uint32) uint32 {
	for _, id := range []uint32{id, 0} {
		if host, ok := m.Host(id); ok {
			return host
		}
	}
	return id
}

// remapped is the root directory of a snapshot's own directory, which is not remapped by the mount.
func (s *Store) remapped(root entry.Entry, sn metadata.Snapshot) (entry.Entry, error) {
	uids, gids, ok, err := s.idMaps(sn)
	if err == nil && ok {
		root.UID, root.GID = hostID(uids, root.UID), hostID(gids, root.GID)
	}
	return root, err
}

// remaps says whether the labels of a snapshot, which were read before, ask for remapped ids.
func (s *Store) remaps(sn metadata.Snapshot) bool {
	_, _, ok, err := s.idMaps(sn)
	return ok && err == nil
}

// idOptions are the options that have containerd mount with remapped ids.
func (s *Store) idOptions(sn metadata.Snapshot) ([]string, error) {
	uids, gids, ok, err := s.idMaps(sn)
	if err != nil || !ok {
		return nil, err
	}
	return []string{"uidmap=" + uids.String(), "gidmap=" + gids.String()}, nil
}
