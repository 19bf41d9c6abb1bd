package snapshot

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// idMap is how the ids of a user namespace map to those of the host.
type idMap []idRange

type idRange struct{ container, host, size uint32 }

// idMaps reads the labels that ask for remapped ids. They count only outside extraction, because there they may come from
// the image. ok is false when nothing is to be remapped; errdefs.ErrInvalidArgument when a label is malformed: it becomes a
// mount option, so nothing of it is passed on that is not understood.
func idMaps(key string, labels map[string]string) (uids, gids idMap, ok bool, err error) {
	u, g := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if (u == "" && g == "") || labels[snapshots.LabelSnapshotRef] != "" || isExtraction(key) {
		return nil, nil, false, nil
	}
	if uids, err = parseIDMap(u); err == nil {
		gids, err = parseIDMap(g)
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

func parseIDMap(s string) (idMap, error) {
	var m idMap
	for part := range strings.SplitSeq(s, ",") {
		var n [3]uint32
		fields := strings.Split(part, ":")
		if len(fields) != len(n) {
			return nil, fmt.Errorf("id mapping %.100q: not CONTAINER:HOST:SIZE: %w", s, errdefs.ErrInvalidArgument)
		}
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("id mapping %.100q: %w: %w", s, err, errdefs.ErrInvalidArgument)
			}
			n[i] = uint32(v)
		}
		if n[2] == 0 {
			return nil, fmt.Errorf("id mapping %.100q: empty range: %w", s, errdefs.ErrInvalidArgument)
		}
		m = append(m, idRange{n[0], n[1], n[2]})
	}
	return m, nil
}

// String is the mapping as containerd's mounts take it.
func (m idMap) String() string {
	parts := make([]string, len(m))
	for i, r := range m {
		parts[i] = fmt.Sprintf("%d:%d:%d", r.container, r.host, r.size)
	}
	return strings.Join(parts, ",")
}

// host maps an id; one without a place in the namespace becomes the namespace's root.
func (m idMap) host(id uint32) uint32 {
	for _, r := range m {
		if id >= r.container && id-r.container < r.size {
			return r.host + (id - r.container)
		}
	}
	for _, r := range m {
		if r.container == 0 {
			return r.host
		}
	}
	return id
}

// remapped is the root directory of a snapshot's own directory, which is not remapped by the mount.
func remapped(root unpack.Entry, key string, labels map[string]string) (unpack.Entry, error) {
	uids, gids, ok, err := idMaps(key, labels)
	if err == nil && ok {
		root.UID, root.GID = uids.host(root.UID), gids.host(root.GID)
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
