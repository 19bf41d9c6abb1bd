package resolver

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/resolver/internal/encoding"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// acceptManifests lists the media types of the documents that this package understands.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest,
}, ", ")

// document is a manifest or an index whose bytes hash to digest, and which has only one reading.
type document struct {
	*imagejson.Document
	digest digest.Digest
	bytes  []byte
}

func (d document) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.digest, Size: int64(len(d.bytes))}
}

// manifest downloads the manifest or index object, a tag or a digest, from the first host that has
// it. want is its digest, "" if only a tag is known. mediaType is the one in a descriptor, "" if
// that is not known.
func manifest(ctx context.Context, p *registry.Repository, object string, want digest.Digest,
	mediaType string,
) (document, error) {
	need := docker.HostCapabilityPull
	if want == "" {
		need |= docker.HostCapabilityResolve // not every mirror may resolve tags
	}
	end := time.Now().Add(p.DocumentTimeout())
	var first error
	for i, host := range p.Hosts {
		if !host.Capabilities.Has(need) {
			continue
		}
		last := i == len(p.Hosts)-1
		bounded, cancel := retry.Within(ctx, end, last)
		doc, err := manifestTries(bounded, p, host, last, object, want, mediaType)
		if err != nil && retry.Expired(ctx, bounded) {
			err = retry.TimeoutError("registry "+host.Host, p.DocumentTimeout())
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return doc, err
		}
		// Any other error says more than that one host lacks the manifest.
		if first == nil || errdefs.IsNotFound(first) {
			first = err
		}
	}
	if first == nil {
		first = p.NoHostError()
	}
	return document{}, first
}

// manifestTries asks one host, and the last host repeatedly.
func manifestTries(ctx context.Context, p *registry.Repository, host *registry.Endpoint, last bool, object string,
	want digest.Digest, mediaType string,
) (document, error) {
	for attempt := 1; ; attempt++ {
		doc, err := manifestFrom(ctx, p, host, object, want, mediaType)
		if err == nil {
			return doc, nil
		}
		if ctx.Err() != nil || !last || !retry.IsTemporary(err) || attempt >= p.Retry().Attempts {
			return document{}, err
		}
		if err := p.Retry().Wait(ctx, attempt, err); err != nil {
			return document{}, err
		}
	}
}

// manifestFrom sends one request for a manifest or index.
func manifestFrom(ctx context.Context, p *registry.Repository, host *registry.Endpoint, object string,
	want digest.Digest, mediaType string,
) (document, error) {
	resp, err := p.Get(ctx, host, "manifests", object, acceptManifests, registry.Range{}, 0)
	if err != nil {
		return document{}, err
	}
	defer resp.Body.Close()
	data, err := encoding.ReadAll(resp, want, MaxManifestSize)
	if err != nil {
		if errdefs.IsDataLoss(err) {
			return document{}, fmt.Errorf("manifest %s from %s: %w", object, host.Host, err)
		}
		return document{}, httperror.Network("registry "+host.Host, err)
	}
	doc := document{bytes: data, digest: digest.FromBytes(data)}
	if want != "" && doc.digest != want {
		err := fmt.Errorf("manifest %s from %s: the bytes hash to %s: %w",
			object, host.Host, doc.digest, errdefs.ErrDataLoss)
		return document{}, cause.Mark(err, cause.Digest, "")
	}
	if claim := resp.Header.Get("Docker-Content-Digest"); want == "" && claim != "" && contradicts(claim, data) {
		err := fmt.Errorf("manifest %s from %s: header Docker-Content-Digest is %q, the bytes hash to %s: %w",
			object, host.Host, claim, doc.digest, errdefs.ErrDataLoss)
		return document{}, cause.Mark(err, cause.Digest, "")
	}
	if mediaType == "" {
		mediaType = headerType(resp.Header)
	}
	if doc.Document, err = imagejson.Read(mediaType, data); err != nil {
		return document{}, fmt.Errorf("manifest %s from %s: %w", doc.digest, host.Host, err)
	}
	return doc, nil
}

// contradicts reports whether claim, a digest of any algorithm, is not the digest of data.
func contradicts(claim string, data []byte) bool {
	d, err := digest.Parse(claim)
	return err != nil || d.Algorithm().FromBytes(data) != d
}

// headerType returns the media type in the headers, "" if they have none of a manifest.
func headerType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || t == "text/plain" || t == "application/octet-stream" || t == "application/json" {
		return ""
	}
	return t
}
