package plugin

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/exactjson"
	"github.com/tank-snapshotter/tank/internal/imagejson"
)

// folded returns the image that containerd reads from a manifest which Tank refuses because of cause.
// containerd ignores the case of names, so it accepts documents that other programs read in another way.
// Unpacking the image is refused; only its chain IDs are set. The image is nil if containerd would not
// unpack it either.
func (r *recentBlobs) folded(ctx context.Context, d digest.Digest, doc []byte,
	cause error,
) (i *recentImage, found bool) {
	var manifest struct {
		Config struct {
			Digest digest.Digest `json:"digest"`
		} `json:"config"`
		Layers []struct{} `json:"layers"`
	}
	if json.Unmarshal(doc, &manifest) != nil || manifest.Config.Digest.Validate() != nil || len(manifest.Layers) == 0 {
		return nil, true
	}
	doc, err := r.document(ctx, manifest.Config.Digest, imagejson.MaxConfigSize)
	if err != nil {
		return nil, errors.Is(err, errNoDocument)
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(doc, &config) != nil {
		return nil, true
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(manifest.Layers) || len(ids) > exactjson.MaxObjects {
		return nil, true
	}
	for _, id := range ids {
		if id.Validate() != nil {
			return nil, true
		}
	}
	return &recentImage{manifest: d, chains: chainsOf(ids), refused: refusal(d, cause)}, true
}
