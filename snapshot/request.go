package snapshot

import (
	"cmp"
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

// The labels of containerd that its package snapshots does not name.
const (
	// labelParentChainID comes with the Prepare of a layer that containerd unpacks without naming its
	// parent ("rebase").
	labelParentChainID = "containerd.io/snapshot/parent-chain-id"
	// labelLayerDigest and labelManifestDigest come with the Prepare of a layer if containerd's
	// configuration passes annotations to the snapshotter.
	labelLayerDigest    = "containerd.io/snapshot/cri.layer-digest"
	labelManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
)

// Request is what containerd asks for when it prepares a snapshot or a view. Labels may come from the annotations of an
// image, so no field is to be trusted.
type Request struct {
	// Key is the key of the new snapshot, and Parent is that of its parent; "" for none.
	Key, Parent string
	// Labels are the labels of the new snapshot. They must not be changed.
	Labels map[string]string

	// Extraction reports that containerd will unpack a layer into the snapshot.
	Extraction bool
	// Target is the chain ID under which containerd will look for the committed snapshot; "" if no label names it.
	Target string
	// KeyChainID is the chain ID that the key of an extraction ends with; "" for any other key.
	KeyChainID string
	// Blob is the digest of the layer's blob; "" if no label names it, or if the label is not a digest.
	Blob digest.Digest
	// Manifest is the digest of the image's manifest; "" as for Blob.
	Manifest digest.Digest
	// DiffID is the diff ID of the layer as the label has it, which may not be a digest. HasDiffID is false if there is
	// no label.
	DiffID    string
	HasDiffID bool
	// ParentChainID is the chain ID of the parent that containerd names only at the commit ("rebase"); "" if no label
	// names it.
	ParentChainID string
	// UIDMapping and GIDMapping ask for a mount with remapped IDs, as containerd wrote them; "" for none.
	UIDMapping, GIDMapping string
}

// ParseRequest returns the request of a call to Prepare or View. It returns the error of an option.
func ParseRequest(key, parent string, opts ...snapshots.Opt) (Request, error) {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return Request{}, err
		}
	}
	return parseRequest(key, parent, base.Labels), nil
}

// recordedRequest returns the request that an active snapshot or a view was made for.
func recordedRequest(sn metadata.Snapshot) Request { return parseRequest(sn.Key, sn.Parent, sn.Labels) }

func parseRequest(key, parent string, labels map[string]string) Request {
	r := Request{
		Key: key, Parent: parent, Labels: labels,
		Target: targetOf(labels), ParentChainID: labels[labelParentChainID],
		Blob: digestOf(labels[labelLayerDigest]), Manifest: digestOf(labels[labelManifestDigest]),
		UIDMapping: labels[snapshots.LabelSnapshotUIDMapping],
		GIDMapping: labels[snapshots.LabelSnapshotGIDMapping],
	}
	r.DiffID, r.HasDiffID = labels[snapshots.LabelSnapshotDiffID]
	// The key is "<namespace>/<sequence>/extract-<unique> <chain ID>". The name of a container has no space.
	if name := key[strings.LastIndexByte(key, '/')+1:]; strings.HasPrefix(name, "extract-") {
		_, r.KeyChainID, r.Extraction = strings.Cut(name, " ")
	}
	r.Extraction = r.Extraction || r.Target != ""
	return r
}

// targetOf returns the chain ID under which containerd looks for a committed snapshot; "" if no label names it.
func targetOf(labels map[string]string) string { return labels[snapshots.LabelSnapshotRef] }

// digestOf parses a digest of an untrusted label, and returns "" for what is not a digest.
func digestOf(s string) digest.Digest {
	d, err := digest.Parse(s)
	if err != nil {
		return ""
	}
	return d
}

// ChainID returns the chain ID of the layer that containerd extracts, which pulls without labels have in the key alone.
// It returns "" if the request is not an extraction or does not name the layer.
func (r Request) ChainID() string { return cmp.Or(r.Target, r.KeyChainID) }

// rebases reports whether the snapshot may get a parent at its commit. containerd 2.3 and later say so.
// containerd 2.2 has neither of the two labels, and its request for the lowest layer looks the same.
// Inside a user namespace, where the mount could not be made, it never does.
func (r Request) rebases(userNamespace bool) bool {
	old := r.Target != "" && r.DiffID == ""
	return r.ParentChainID != "" || old && !userNamespace
}

// expects reports whether an extraction is one of the layer diffID. containerd 2.3 and later name the diff ID. The
// target, which is a chain ID, has to be that of the layer above the parent all the same: annotations of a pod come
// along as labels of its sandbox's snapshot, and containerd would use the answer for every image that has that chain
// ID. The key of the parent ends with its chain ID: "<namespace>/<sequence>/<chain ID>" or, if the parent was answered
// with a known layer, "<namespace>/<sequence>/extract-<unique> <chain ID>".
func (r Request) expects(diffID digest.Digest) bool {
	if r.HasDiffID && r.DiffID != diffID.String() {
		return false
	}
	below := r.ParentChainID
	if r.Parent != "" {
		below = r.Parent[strings.LastIndexAny(r.Parent, "/ ")+1:]
	}
	chain := []digest.Digest{diffID}
	if below != "" {
		chain = []digest.Digest{digest.Digest(below), diffID}
	}
	return r.Target == identity.ChainID(chain).String()
}

// idMaps are the ID mappings that a snapshot is mounted with. Empty mappings mean that nothing is remapped.
type idMaps struct{ uids, gids idmap.Map }

func (m idMaps) empty() bool { return len(m.uids) == 0 && len(m.gids) == 0 }

// idMaps parses the mappings that a request asks for. They do not count for an extraction, where they may come from the
// image; nor if remapped, above a parent whose owners containerd changed itself, because containerd passes them on all
// the same; nor inside a user namespace, where no process can mount with remapped IDs. A malformed label is of class
// errdefs.ErrInvalidArgument: it becomes a mount option, so nothing that is not understood is passed on.
func (s *Store) idMaps(r Request, remapped bool) (m idMaps, err error) {
	if r.UIDMapping == "" && r.GIDMapping == "" || remapped || s.opts.UserXattr || r.Extraction {
		return m, nil
	}
	if m.uids, err = idmap.Parse(r.UIDMapping); err == nil {
		m.gids, err = idmap.Parse(r.GIDMapping)
	}
	if err != nil {
		return idMaps{}, fmt.Errorf("snapshot %s: %w", r.Key, err)
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
