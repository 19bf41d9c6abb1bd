package snapshot_test

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/snapshot"
)

// TestParseRequest parses the keys and labels that containerd 2.2 to 2.4, ctr and nerdctl send, and some that an image
// could make them send.
func TestParseRequest(t *testing.T) {
	const (
		ref         = snapshots.LabelSnapshotRef
		diffID      = snapshots.LabelSnapshotDiffID
		parentChain = "containerd.io/snapshot/parent-chain-id"
		layerDigest = "containerd.io/snapshot/cri.layer-digest"
		manifest    = "containerd.io/snapshot/cri.manifest-digest"
		uids        = snapshots.LabelSnapshotUIDMapping
		gids        = snapshots.LabelSnapshotGIDMapping
	)
	sum := func(s string) digest.Digest { return digest.FromString(s) }
	str := func(s string) string { return sum(s).String() }
	type labels map[string]string
	annotations := labels{
		layerDigest: str("blob"), manifest: str("manifest"),
		"containerd.io/snapshot/cri.image-ref":    "docker.io/library/a:b",
		"containerd.io/snapshot/cri.image-layers": str("blob") + "," + str("blob 2"),
	}
	with := func(all ...labels) labels {
		l := labels{}
		for _, more := range all {
			maps.Copy(l, more)
		}
		return l
	}
	extract := "k8s.io/7/extract-123456789-AbCd " + str("chain")
	below := "k8s.io/6/" + str("below")
	long := strings.Repeat("z", 1<<16)
	for _, row := range []struct {
		name        string
		key, parent string
		labels      labels
		want        snapshot.Request // without Key, Parent, Labels
		chainID     string
	}{
		{"nothing", "", "", nil, snapshot.Request{}, ""},
		{"a container", "k8s.io/9/c0ffee", below, nil, snapshot.Request{}, ""},
		{"a container whose name begins like an extraction's", "default/9/extract-1", below, nil,
			snapshot.Request{}, ""},
		{"a name with a space", "default/9/other-1 " + str("chain"), below, nil, snapshot.Request{}, ""},
		{"a namespace that looks like an extraction", "extract-1 x/9/c", "", nil, snapshot.Request{}, ""},
		{"a container of nerdctl or CRI with remapped IDs", "default/9/c0ffee", below,
			labels{uids: "0:100000:65536", gids: "0:200000:65536"},
			snapshot.Request{UIDMapping: "0:100000:65536", GIDMapping: "0:200000:65536"}, ""},

		{"without labels, as by containerd's rootfs package", extract, below, nil,
			snapshot.Request{Extraction: true, KeyChainID: str("chain")}, str("chain")},
		{"without a namespace", "extract-1 " + str("chain"), "", nil,
			snapshot.Request{Extraction: true, KeyChainID: str("chain")}, str("chain")},
		{"a key that ends early", "default/1/extract-1 ", "", nil, snapshot.Request{Extraction: true}, ""},
		{"a key with two spaces", "default/1/extract-1 a b", "", nil,
			snapshot.Request{Extraction: true, KeyChainID: "a b"}, "a b"},

		{"2.2, ctr", extract, below, labels{ref: str("chain")},
			snapshot.Request{Extraction: true, Target: str("chain"), KeyChainID: str("chain")}, str("chain")},
		{"2.2, CRI or nerdctl with annotations", extract, below, with(annotations, labels{ref: str("chain")}),
			snapshot.Request{
				Extraction: true, Target: str("chain"), KeyChainID: str("chain"),
				Blob: sum("blob"), Manifest: sum("manifest"),
			}, str("chain")},
		{"2.3 and 2.4, the lowest layer", extract, "", labels{ref: str("chain"), diffID: str("chain")},
			snapshot.Request{
				Extraction: true, Target: str("chain"), KeyChainID: str("chain"),
				DiffID: str("chain"), HasDiffID: true,
			}, str("chain")},
		{"2.3 and 2.4, ctr, one layer after the other", extract, below,
			labels{ref: str("chain"), diffID: str("diff"), parentChain: str("below")},
			snapshot.Request{
				Extraction: true, Target: str("chain"), KeyChainID: str("chain"),
				DiffID: str("diff"), HasDiffID: true, ParentChainID: str("below"),
			}, str("chain")},
		{"2.3 and 2.4, CRI in parallel", extract, "",
			with(annotations, labels{ref: str("chain"), diffID: str("diff"), parentChain: str("below")}),
			snapshot.Request{
				Extraction: true, Target: str("chain"), KeyChainID: str("chain"),
				Blob: sum("blob"), Manifest: sum("manifest"),
				DiffID: str("diff"), HasDiffID: true, ParentChainID: str("below"),
			}, str("chain")},

		{"a target that is not in the key", "default/9/c", "", labels{ref: "mine"},
			snapshot.Request{Extraction: true, Target: "mine"}, "mine"},
		{"a target that the key contradicts", extract, "", labels{ref: "mine"},
			snapshot.Request{Extraction: true, Target: "mine", KeyChainID: str("chain")}, "mine"},
		{"digests that are paths", extract, "",
			labels{layerDigest: "sha256:../../../etc/passwd", manifest: "/etc/passwd"},
			snapshot.Request{Extraction: true, KeyChainID: str("chain")}, str("chain")},
		{"digests that are long, short or of another case", extract, "",
			labels{layerDigest: "sha256:" + long, manifest: "sha256:ABC", diffID: long},
			snapshot.Request{Extraction: true, KeyChainID: str("chain"), DiffID: long, HasDiffID: true}, str("chain")},
		{"an unknown algorithm", extract, "", labels{layerDigest: "md5:" + strings.Repeat("0", 32)},
			snapshot.Request{Extraction: true, KeyChainID: str("chain")}, str("chain")},
		{"empty labels", "default/9/c", "",
			labels{ref: "", diffID: "", parentChain: "", layerDigest: "", manifest: "", uids: "", gids: ""},
			snapshot.Request{HasDiffID: true}, ""},
		{"mappings that would be mount options", extract, "", labels{uids: "0:0:1,lowerdir=/", gids: long},
			snapshot.Request{
				Extraction: true, KeyChainID: str("chain"), UIDMapping: "0:0:1,lowerdir=/", GIDMapping: long,
			}, str("chain")},
		{"a parent chain of a container", "default/9/c", below, labels{parentChain: "x y/z"},
			snapshot.Request{ParentChainID: "x y/z"}, ""},
		{"labels of others", "default/9/c", "", labels{
			"containerd.io/snapshot.ref ": "x", "Containerd.io/snapshot.ref": "x", "snapshot.ref": "x", "": "x",
		}, snapshot.Request{}, ""},
	} {
		want := row.want
		want.Key, want.Parent, want.Labels = row.key, row.parent, row.labels
		var opts []snapshots.Opt
		if row.labels != nil {
			opts = append(opts, snapshots.WithLabels(maps.Clone(row.labels)))
		}
		got, err := snapshot.ParseRequest(row.key, row.parent, opts...)
		must(t, err)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %.2000s\nwant %.2000s", row.name, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		}
		if got.ChainID() != row.chainID {
			t.Errorf("%s: chain ID %.200q", row.name, got.ChainID())
		}
	}

	failure := errors.New("an option failed")
	_, err := snapshot.ParseRequest("key", "", func(*snapshots.Info) error { return failure })
	if !errors.Is(err, failure) {
		t.Errorf("an option that fails: %v", err)
	}
}
