package plugin

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Applier unpacks a layer into a snapshot.
type Applier interface {
	// ApplyDecoded has a layer unpacked for the snapshot that the mounts belong to and returns its diff ID.
	// decode reads the blob; nil: the blob is of a media type that Layers reads.
	ApplyDecoded(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, decode layer.Decode) (
		ocispec.Descriptor, error)
}

// applier serves containerd's diff service.
type applier struct {
	layers     Applier
	processors func(context.Context, peer.Process) ([]processor.Processor, error) // nil: there are none
}

// Apply unpacks a layer. If Tank does not read its media type, containerd's stream processors decode it.
func (a *applier) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	if mediatype.Layer(desc.MediaType) {
		return a.layers.ApplyDecoded(ctx, desc, mounts, nil)
	}
	decode, err := a.decoder(ctx, desc, opts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.layers.ApplyDecoded(ctx, desc, mounts, decode)
}

// decoder returns what decodes a blob of a media type that Tank does not read. It returns nil if there is
// no such stream processor, or if containerd's configuration cannot be read: then containerd asks the next
// differ in its list, which is its own.
func (a *applier) decoder(ctx context.Context, desc ocispec.Descriptor, opts []diff.ApplyOpt) (layer.Decode, error) {
	if a.processors == nil {
		return nil, nil
	}
	all, err := a.processors(ctx, processOf(ctx))
	if err != nil {
		log.G(ctx).WithError(err).Warn("stream processors: cannot read containerd's configuration")
		return nil, nil
	}
	chain := processor.Chain(all, desc.MediaType, mediatype.Layer)
	if chain == nil {
		if mediatype.Encrypted(desc.MediaType) {
			return nil, fmt.Errorf("layer %s: encrypted, and no stream processor accepts %.100q: %w",
				desc.Digest, desc.MediaType, errdefs.ErrFailedPrecondition)
		}
		return nil, nil
	}
	payloads, err := payloadsOf(ctx, desc, opts)
	if err != nil {
		return nil, err
	}
	return processor.Decode(chain, &processor.Options{Payloads: payloads}), nil
}

// payloadsOf returns the payloads that the client sends to stream processors, encoded as containerd encodes
// them.
func payloadsOf(ctx context.Context, desc ocispec.Descriptor, opts []diff.ApplyOpt) (map[string][]byte, error) {
	var config diff.ApplyConfig
	for _, o := range opts {
		if err := o(ctx, desc, &config); err != nil {
			return nil, fmt.Errorf("apply: %w", err)
		}
	}
	payloads := map[string][]byte{}
	for id, p := range config.ProcessorPayloads {
		b, err := proto.Marshal(&anypb.Any{TypeUrl: p.GetTypeUrl(), Value: p.GetValue()})
		if err != nil {
			return nil, fmt.Errorf("apply: payload of %.100q: %w: %w", id, err, errdefs.ErrInvalidArgument)
		}
		payloads[id] = b
	}
	return payloads, nil
}
