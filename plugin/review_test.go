package plugin_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// rawCodec sends raw bytes in place of an encoded message.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return nil }
func (rawCodec) Name() string                  { return "proto" }

// TestHostileRequests shows that a hostile request fails alone and the server continues.
func TestHostileRequests(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	ctx := context.Background()
	w := start(t)
	for _, method := range []string{
		"snapshots.v1.Snapshots/Prepare", "snapshots.v1.Snapshots/Commit", "diff.v1.Diff/Apply", "diff.v1.Diff/Diff",
		"content.v1.Content/Info",
	} {
		for _, b := range []string{"", "\xff\xff\xff\xff", strings.Repeat("\x0a", 1<<20)} {
			err := w.conn.Invoke(ctx, "/containerd.services."+method, []byte(b), &struct{}{},
				grpc.ForceCodec(rawCodec{}))
			if c := status.Code(err); c == codes.OK || c == codes.Unavailable {
				t.Errorf("%s with %d bytes: %v", method, len(b), err)
			}
		}
	}
	sn := snapshotproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(w.conn), "tank")
	for _, key := range []string{"", "a\x00b", strings.Repeat("k", 1<<20)} {
		if _, err := sn.Prepare(ctx, key, ""); !errdefs.IsInvalidArgument(err) {
			t.Errorf("key of %d bytes: %.200v", len(key), err)
		}
	}
	good, err := sn.Prepare(ctx, "../../x", "", snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref":                 "x",
		"containerd.io/snapshot/diff-id":             "sha256:../x",
		"containerd.io/snapshot/cri.manifest-digest": "sha256:../../../etc/passwd",
		"containerd.io/snapshot/cri.layer-digest":    strings.Repeat("z", 1<<16),
	}))
	must(t, err)
	fs := good[0].Source
	if _, err := os.Stat(fs); err != nil || filepath.Base(filepath.Dir(filepath.Dir(fs))) != "snapshots" {
		t.Errorf("mounts %v: %v", good, err)
	}
	apply := diffproxy.NewDiffApplier(diffapi.NewDiffClient(w.conn)).(diff.Applier)
	blob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("x"), Size: 1}
	for _, mounts := range [][]mount.Mount{
		nil, {{}}, {{Type: "bind", Source: "/etc"}},
		{{Type: "bind", Source: fs + "/../../../layers/1/fs"}},
		{{Type: "bind", Source: strings.Replace(fs, "/snapshots/", "/snapshots/./", 1)}},
		{{Type: "bind", Source: strings.Replace(fs, "/snapshots/", "/snapshots/../snapshots/", 1)}},
		{{Type: "bind", Source: fs + "\x00"}},
		{{Type: "overlay", Options: []string{"upperdir=" + fs, "upperdir=/etc"}}},
		{{Type: "bind", Source: fs}, {Type: "bind", Source: fs}},
	} {
		if _, err := apply.Apply(ctx, blob, mounts); !errdefs.IsNotImplemented(err) {
			t.Errorf("apply to %v: %v", mounts, err)
		}
	}
	must(t, sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil },
		strings.Repeat("labels.a==b,", 100_000)+"name==x"))
	must(t, sn.Remove(ctx, "../../x"))
}
