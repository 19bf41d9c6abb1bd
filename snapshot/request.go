package snapshot

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

const (
	// labelParentChainID comes with the Prepare of a layer that containerd unpacks without naming its
	// parent ("rebase").
	labelParentChainID = "containerd.io/snapshot/parent-chain-id"
	// labelLayerDigest comes with the Prepare of a layer when containerd is told to pass annotations.
	labelLayerDigest = "containerd.io/snapshot/cri.layer-digest"
)

// request is what containerd asks for with the key and the labels of a snapshot. Labels may come from an image, so they
// are not to be trusted.
type request struct {
	// extraction means that containerd unpacks a layer into the snapshot.
	extraction bool
	// target is the name under which containerd will look for the committed snapshot; "" if it did not say.
	target string
	// blob is the layer's blob; "" if containerd did not name it.
	blob digest.Digest
	// diffID is the diff ID of the layer as containerd wrote it; hasDiffID is false if it wrote none.
	diffID    string
	hasDiffID bool
	// parentChain is the chain ID of the parent that containerd names only at the commit; "" if it names it now.
	parentChain string
	// uids and gids are the mappings with which the snapshot is to be mounted; "" for none.
	uids, gids string
}

// requestOf reads the request that a snapshot was prepared for.
func requestOf(key string, labels map[string]string) request {
	r := request{
		target: labels[snapshots.LabelSnapshotRef], blob: digestOf(labels[labelLayerDigest]),
		parentChain: labels[labelParentChainID],
		uids:        labels[snapshots.LabelSnapshotUIDMapping], gids: labels[snapshots.LabelSnapshotGIDMapping],
	}
	r.diffID, r.hasDiffID = labels[snapshots.LabelSnapshotDiffID]
	// The key is "<namespace>/<sequence>/extract-<unique> <chain ID>". The name of a container has no space.
	name := key[strings.LastIndexByte(key, '/')+1:]
	r.extraction = r.target != "" || strings.HasPrefix(name, "extract-") && strings.Contains(name, " ")
	return r
}

// rebases reports whether the snapshot may get a parent at its commit. containerd 2.3 and later say so.
// containerd 2.2 has neither of the two labels, and its request for the lowest layer looks the same.
// Inside a user namespace, where the mount could not be made, it never does.
func (r request) rebases(userNamespace bool) bool {
	old := r.target != "" && r.diffID == ""
	return r.parentChain != "" || old && !userNamespace
}

// wants reports whether an extraction above parent is one of the layer diffID. containerd 2.3 and later name the diff
// ID. The target, which is a chain ID, has to be that of the layer above the parent all the same: annotations of a pod
// come along as labels of its sandbox's snapshot, and containerd would use the answer for every image that has that
// chain ID. The key of the parent ends with its chain ID: "<namespace>/<sequence>/<chain ID>" or, if the parent was
// answered with a known layer, "<namespace>/<sequence>/extract-<unique> <chain ID>".
func (r request) wants(diffID digest.Digest, parent string) bool {
	if r.hasDiffID && r.diffID != diffID.String() {
		return false
	}
	below := r.parentChain
	if parent != "" {
		below = parent[strings.LastIndexAny(parent, "/ ")+1:]
	}
	chain := []digest.Digest{diffID}
	if below != "" {
		chain = []digest.Digest{digest.Digest(below), diffID}
	}
	return r.target == identity.ChainID(chain).String()
}

// idMaps are the ID mappings that a snapshot is mounted with. Empty mappings mean that nothing is remapped.
type idMaps struct{ uids, gids idmap.Map }

func (m idMaps) empty() bool { return len(m.uids) == 0 && len(m.gids) == 0 }

// idMaps reads the labels that ask for remapped IDs. They do not count for an extraction, where they may come from the
// image; nor above a parent whose owners containerd changed itself, because containerd passes them on all the same; nor
// inside a user namespace, where no process can mount with remapped IDs. A malformed label is of class
// errdefs.ErrInvalidArgument: it becomes a mount option, so nothing that is not understood is passed on.
func (s *Store) idMaps(sn metadata.Snapshot) (m idMaps, err error) {
	r := requestOf(sn.Key, sn.Labels)
	if r.uids == "" && r.gids == "" || sn.Remapped || s.opts.UserXattr || r.extraction {
		return m, nil
	}
	if m.uids, err = idmap.Parse(r.uids); err == nil {
		m.gids, err = idmap.Parse(r.gids)
	}
	if err != nil {
		return idMaps{}, fmt.Errorf("snapshot %s: %w", sn.Key, err)
	}
	return m, nil
}

// options are the options that make containerd mount with remapped IDs.
func (m idMaps) options() []string {
	if m.empty() {
		return nil
	}
	return []string{"uidmap=" + m.uids.String(), "gidmap=" + m.gids.String()}
}

// root maps the owner of a root directory that the mount does not remap.
func (m idMaps) root(root entry.Entry) entry.Entry {
	if !m.empty() {
		root.UID, root.GID = hostID(m.uids, root.UID), hostID(m.gids, root.GID)
	}
	return root
}

// hostID maps an ID. An ID that the mapping does not have becomes root of the namespace.
func hostID(m idmap.Map, id uint32) uint32 {
	for _, id := range []uint32{id, 0} {
		if host, ok := m.Host(id); ok {
			return host
		}
	}
	return id
}

// remapsItself reports whether containerd, which was not told about the capability remap-ids, changed
// the owners of what it commits: it prepared "<digest>-remap" and commits it as "<digest>".
func remapsItself(key, name string) bool { return path.Base(key) == path.Base(name)+"-remap" }
