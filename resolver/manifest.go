package resolver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// acceptManifests names every document that this package understands.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest,
}, ", ")

// document is a manifest or an index whose bytes hash to digest and whose media type agrees with its content.
type document struct {
	mediaType string
	digest    digest.Digest
	bytes     []byte
}

func (d document) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.mediaType, Digest: d.digest, Size: int64(len(d.bytes))}
}

// manifest gets the document object, a tag or a digest, from the first host that has it. want is its digest, empty when only a tag is known.
func (p *repository) manifest(ctx context.Context, object string, want digest.Digest, mediaType string) (document, error) {
	need := docker.HostCapabilityPull
	if want == "" {
		need |= docker.HostCapabilityResolve // a mirror may not be trusted with what a tag means
	}
	var first error
	for i, host := range p.hosts {
		if !host.Capabilities.Has(need) {
			continue
		}
		last := i == len(p.hosts)-1
		for attempt := 1; ; attempt++ {
			doc, err := p.manifestFrom(ctx, host, object, want, mediaType)
			if err == nil {
				return doc, nil
			}
			if ctx.Err() != nil {
				return document{}, err
			}
			// A missing manifest says the least, so any other host's reason is better.
			if first == nil || errdefs.IsNotFound(first) {
				first = err
			}
			if !last || !temporary(err) || attempt >= p.opts.Attempts {
				break
			}
			if err := p.pause(ctx, attempt, err); err != nil {
				return document{}, err
			}
		}
	}
	if first == nil {
		first = fmt.Errorf("registry %s: no host is configured to be pulled from: %w", p.registry, errdefs.ErrNotFound)
	}
	return document{}, first
}

func (p *repository) manifestFrom(ctx context.Context, host *endpoint, object string, want digest.Digest, mediaType string) (document, error) {
	resp, err := p.get(ctx, host, "manifests", object, acceptManifests, span{}, 0)
	if err != nil {
		return document{}, err
	}
	defer resp.Body.Close()
	data, err := readAtMost(resp.Body, MaxManifestSize)
	if err != nil {
		if errdefs.IsDataLoss(err) {
			return document{}, fmt.Errorf("manifest %s from %s: %w", object, host.Host, err)
		}
		return document{}, networkError("registry "+host.Host, err)
	}
	doc := document{bytes: data, digest: digest.FromBytes(data)}
	if want != "" && doc.digest != want {
		return document{}, fmt.Errorf("manifest %s from %s: the bytes hash to %s: %w", object, host.Host, doc.digest, errdefs.ErrDataLoss)
	}
	if claim := resp.Header.Get("Docker-Content-Digest"); want == "" && claim != "" && contradicts(claim, data) {
		return document{}, fmt.Errorf("manifest %s from %s: header Docker-Content-Digest says %q, the bytes hash to %s: %w",
			object, host.Host, claim, doc.digest, errdefs.ErrDataLoss)
	}
	if mediaType == "" {
		mediaType = headerType(resp.Header)
	}
	if doc.mediaType, err = agree(mediaType, data); err != nil {
		return document{}, fmt.Errorf("manifest %s from %s: %w", doc.digest, host.Host, err)
	}
	return doc, nil
}

// contradicts says whether a claimed digest, of whatever algorithm, is not that of data.
func contradicts(claim string, data []byte) bool {
	d, err := digest.Parse(claim)
	return err != nil || d.Algorithm().FromBytes(data) != d
}

// headerType is the media type that a registry claims, or empty when it claims nothing of use.
func headerType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || t == "text/plain" || t == "application/octet-stream" || t == "application/json" {
		return ""
	}
	return t
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than %d bytes: %w", limit, errdefs.ErrDataLoss)
	}
	return data, nil
}

// agree returns the media type of a document after comparing what is claimed for it, what it says of itself and what it holds, so that no two
// programs can take the same bytes for different things (CVE-2021-41190). claimed may be empty.
func agree(claimed string, data []byte) (string, error) {
	if !utf8.Valid(data) {
		return "", fmt.Errorf("not UTF-8: %w", errdefs.ErrDataLoss)
	}
	if err := checkJSON(data, manifestGrammar); err != nil {
		return "", err
	}
	var d struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return "", fmt.Errorf("not a manifest: %v: %w", err, errdefs.ErrDataLoss)
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil || strings.Contains(claimed, "distribution.manifest.v1+") {
		return "", fmt.Errorf("schema 1 images are not supported, rebuild the image: %w", errdefs.ErrDataLoss)
	}
	t := d.MediaType
	switch {
	case t == "":
		t = claimed
	case claimed != "" && claimed != t:
		return "", fmt.Errorf("media type %q inside, %q outside: %w", t, claimed, errdefs.ErrDataLoss)
	}
	isIndex, isManifest := d.Manifests != nil, d.Layers != nil || d.Config != nil
	if isIndex && isManifest {
		return "", fmt.Errorf("both an index and a manifest: %w", errdefs.ErrDataLoss)
	}
	switch {
	case t == "" && isIndex:
		return ocispec.MediaTypeImageIndex, nil
	case t == "" && isManifest:
		return ocispec.MediaTypeImageManifest, nil
	case images.IsIndexType(t) && !isManifest, images.IsManifestType(t) && isManifest:
		return t, nil
	case images.IsIndexType(t) || images.IsManifestType(t):
		return "", fmt.Errorf("media type %q does not fit the content: %w", t, errdefs.ErrDataLoss)
	}
	return "", fmt.Errorf("media type %q is neither an index nor a manifest: %w", t, errdefs.ErrDataLoss)
}

// grammar is what checkJSON has to know of a kind of document.
type grammar struct {
	names map[string]string // the names that decide what it means, by their lower case; Go's decoder would also take them in another case
	free  map[string]bool   // the members below which names are data
}

var (
	manifestGrammar = newGrammar([]string{
		"schemaVersion", "mediaType", "manifests", "layers", "config", "fsLayers", "digest", "size", "platform", "architecture", "os", "variant",
	}, "annotations")
	configGrammar = newGrammar([]string{"architecture", "os", "variant", "rootfs", "diff_ids"}, "config", "container_config", "history")
)

func newGrammar(names []string, free ...string) *grammar {
	g := &grammar{names: map[string]string{}, free: map[string]bool{}}
	for _, name := range names {
		g.names[strings.ToLower(name)] = name
	}
	for _, name := range free {
		g.free[name] = true
	}
	return g
}

// maxDepth bounds nested JSON values.
const maxDepth = 64

// checkJSON refuses what two JSON readers may read differently: a name twice in one object, a structural name in another case, and anything
// behind the document. Where names are data they may be in any case, but not twice.
func checkJSON(data []byte, g *grammar) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := checkValue(dec, 0, g); err != nil {
		if errdefs.IsDataLoss(err) {
			return err
		}
		return fmt.Errorf("not JSON: %v: %w", err, errdefs.ErrDataLoss)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("bytes behind the JSON document: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// checkValue reads one value; g is nil where names are data.
func checkValue(dec *json.Decoder, depth int, g *grammar) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON nested deeper than %d: %w", maxDepth, errdefs.ErrDataLoss)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('['):
		for dec.More() {
			if err := checkValue(dec, depth+1, g); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		names := map[string]bool{}
		for dec.More() {
			tok, err := dec.Token()
			if err != nil {
				return err
			}
			name := tok.(string)
			inner := g
			if g != nil {
				if right, ok := g.names[strings.ToLower(name)]; ok && right != name {
					return fmt.Errorf("ambiguous JSON name %q: %w", name, errdefs.ErrDataLoss)
				}
				if g.free[name] {
					inner = nil
				}
			}
			if names[name] {
				return fmt.Errorf("JSON name %q twice: %w", name, errdefs.ErrDataLoss)
			}
			names[name] = true
			if err := checkValue(dec, depth+1, inner); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = dec.Token() // the closing bracket
	return err
}
