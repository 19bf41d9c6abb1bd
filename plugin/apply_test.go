package plugin_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// decodingLayers reads the decoded layer. Without a decoder it refuses encrypted layers.
type decodingLayers struct {
	plugin.Applier
	mediaType, text string
}

func (l *decodingLayers) ApplyDecoded(
	ctx context.Context, desc ocispec.Descriptor, _ []mount.Mount, decode layer.Decode,
) (ocispec.Descriptor, error) {
	if decode == nil {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	mediaType, r, err := decode(ctx, desc.MediaType, io.NopCloser(strings.NewReader("blob")))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	b, err := io.ReadAll(r)
	l.mediaType, l.text = mediaType, string(b)
	return desc, err
}

// TestProcessors shows which layers go through which stream processors, with the payloads of the
// client.
func TestProcessors(t *testing.T) {
	const outer, inner = "application/vnd.test.outer", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
	shell := func(id, accepts, returns, script string) processor.Processor {
		return processor.Processor{ID: id, Accepts: []string{accepts}, Returns: returns, Path: "/bin/sh",
			Args: []string{"-c", script}}
	}
	both := []processor.Processor{
		shell("first", outer, inner, "cat; echo -n ' first'"), shell("second", inner, ocispec.MediaTypeImageLayer,
			"cat; cat <&3"),
	}
	encoded, err := anypb.New(wrapperspb.String("key"))
	must(t, err)
	for _, row := range []struct {
		testName, mediaType string
		known               []processor.Processor
		err                 error // of the Processors function
		want                string
		is                  func(error) bool
	}{
		{"encrypted", inner, both, nil, "blob", nil},
		{"two processors in a row", outer, both, nil, "blob first", nil},
		{"encrypted, none accepts it", inner, nil, nil, "no stream processor accepts", errdefs.IsFailedPrecondition},
		{"encrypted, processors unknown", inner, nil, errdefs.ErrUnavailable, "", errdefs.IsNotImplemented},
		{"another type that no processor accepts", "application/vnd.erofs.layer.v1", both, nil, "",
			errdefs.IsNotImplemented},
		{"a layer that Tank reads", ocispec.MediaTypeImageLayerGzip, both, nil, "", errdefs.IsNotImplemented},
	} {
		t.Run(row.testName, func(t *testing.T) {
			layers := &decodingLayers{}
			var asked peer.Process
			conn := dial(t, plugin.New(&plugin.Options{
				Snapshotter: noSnapshots{}, Applier: layers,
				Processors: func(_ context.Context, p peer.Process) ([]processor.Processor, error) {
					asked = p
					return row.known, row.err
				},
			}))
			desc := ocispec.Descriptor{MediaType: row.mediaType, Digest: digest.FromString("blob"), Size: 4}
			_, err := diffapi.NewDiffClient(conn).Apply(t.Context(), &diffapi.ApplyRequest{
				Diff: oci.DescriptorToProto(desc), Payloads: map[string]*anypb.Any{"second": encoded},
			})
			err = errgrpc.ToNative(err)
			if row.is != nil {
				if !row.is(err) || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || layers.mediaType != ocispec.MediaTypeImageLayer ||
				!strings.HasPrefix(layers.text, "blob") {
				t.Errorf("got type %s, content %q, error %v", layers.mediaType, layers.text, err)
			}
			if !bytes.Contains([]byte(layers.text), encoded.GetValue()) || !strings.Contains(layers.text, row.want) {
				t.Errorf("%q lacks the payload or %q", layers.text, row.want)
			}
			if asked.PID != os.Getpid() {
				t.Errorf("Processors was called for process %d", asked.PID)
			}
		})
	}
}
