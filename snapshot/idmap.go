package snapshot

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// idMaps reads the labels that ask for remapped ids. They count only outside extraction, because there they may come from
// the image. ok is false when nothing is to be remapped; errdefs.ErrInvalidArgument when a label is malformed: it becomes a
// mount option, so nothing of it is passed on that is not understood.
func idMaps(key string, labels map[string]string) (uids, gids unpack.IDMap, ok bool, err error) {
	u, g := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if (u == "" && g == "") || labels[snapshots.LabelSnapshotRef] != "" || isExtraction(key) {
		return nil, nil, false, nil
	}
	if uids, err = unpack.ParseIDMap(u); err == nil {
		gids, err = unpack.ParseIDMap(g)
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return uids, gids, true, nil
}

// isExtraction says that containerd unpacks a layer into the snapshot: "<ns>/<seq>/extract-<unique> <chain ID>".
func isExtraction(key string) bool {
	return strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], "extract-")
}

// hostID maps an id; one without a place in the namespace becomes the namespace's root.
func hostID(m unpack.IDMap, id uint32) uint32 {
	for _, id := range []uint32{id, 0} {
		if host, ok := m.Host(id); ok {
			return host
		}
	}
	return id
}

// remapped is the root directory of a snapshot's own directory, which is not remapped by the mount.
func remapped(root unpack.Entry, key string, labels map[string]string) (unpack.Entry, error) {
	uids, gids, ok, err := idMaps(key, labels)
	if err == nil && ok {
		root.UID, root.GID = hostID(uids, root.UID), hostID(gids, root.GID)
	}
	return root, err
}

// idOptions are the options that have containerd mount with remapped ids.
func idOptions(key string, labels map[string]string) ([]string, error) {
	uids, gids, ok, err := idMaps(key, labels)
	if err != nil || !ok {
		return nil, err
	}
	return []string{"uidmap=" + uids.String(), "gidmap=" + gids.String()}, nil
}
