package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ReadImage reads the image that an OCI layout calls ref: a manifest, or an index of which the
// linux/amd64 manifest is taken.
func ReadImage(layout, ref string) (Image, error) {
	d, err := findRef(layout, ref)
	if err != nil {
		return Image{}, err
	}
	if d.MediaType == ocispec.MediaTypeImageIndex {
		var index ocispec.Index
		if err := readJSON(layout, d.Digest, &index); err != nil {
			return Image{}, err
		}
		for _, m := range index.Manifests {
			if m.Platform != nil && m.Platform.OS == "linux" && m.Platform.Architecture == "amd64" {
				d = m
			}
		}
	}
	img := Image{Manifest: d}
	var manifest ocispec.Manifest
	if err := readJSON(layout, d.Digest, &manifest); err != nil {
		return Image{}, err
	}
	var config ocispec.Image
	if err := readJSON(layout, manifest.Config.Digest, &config); err != nil {
		return Image{}, err
	}
	img.Config, img.Layers, img.DiffIDs = manifest.Config, manifest.Layers, config.RootFS.DiffIDs
	return img, nil
}

// Push uploads the image that an OCI layout calls ref to the registry at base, under name
// (repository:tag), every blob once.
func Push(layout, ref, base, name string) error {
	d, err := findRef(layout, ref)
	if err != nil {
		return err
	}
	repo, tag, ok := cutTag(name)
	if !ok {
		return fmt.Errorf("%s: wants repository:tag", name)
	}
	return pusher{layout, base + "/v2/" + repo}.manifest(d, tag)
}

func cutTag(name string) (repo, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

type pusher struct{ layout, repo string }

// manifest uploads what d names after everything below it.
func (p pusher) manifest(d ocispec.Descriptor, as string) error {
	b, err := os.ReadFile(blobFile(p.layout, d.Digest))
	if err != nil {
		return err
	}
	var m struct {
		Manifests, Layers []ocispec.Descriptor
		Config            ocispec.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, child := range m.Manifests {
		if err := p.manifest(child, child.Digest.String()); err != nil {
			return err
		}
	}
	if m.Config.Digest != "" {
		for _, blob := range append(m.Layers, m.Config) {
			if err := p.blob(blob.Digest); err != nil {
				return err
			}
		}
	}
	return p.send(http.MethodPut, p.repo+"/manifests/"+as, d.MediaType, bytes.NewReader(b), int64(len(b)))
}

func (p pusher) blob(d digest.Digest) error {
	resp, err := http.Head(p.repo + "/blobs/" + d.String())
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	resp, err = http.Post(p.repo+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	location, err := resp.Location()
	if err != nil {
		return fmt.Errorf("upload of %s: %s: %w", d, resp.Status, err)
	}
	q := location.Query()
	q.Set("digest", d.String())
	location.RawQuery = q.Encode()
	f, err := os.Open(blobFile(p.layout, d))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return p.send(http.MethodPut, location.String(), "application/octet-stream", f, st.Size())
}

func (p pusher) send(method, to, mediaType string, body io.Reader, size int64) error {
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	req := &http.Request{Method: method, URL: u, Header: http.Header{"Content-Type": {mediaType}}, ContentLength: size,
		Body: io.NopCloser(body)}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, u.Path, resp.Status, b)
	}
	return nil
}

// WriteLayout adds images to an OCI layout, which is made when it is missing.
func WriteLayout(layout string, images map[string]BuiltImage) error {
	if err := os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(layout, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`),
		0o644); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if b, err := os.ReadFile(filepath.Join(layout, "index.json")); err == nil {
		if err := json.Unmarshal(b, &index); err != nil {
			return err
		}
	}
	for ref, img := range images {
		for d, b := range img.Blobs {
			if err := os.WriteFile(blobFile(layout, d), b, 0o644); err != nil {
				return err
			}
		}
		d := img.Manifest
		d.Annotations = map[string]string{ocispec.AnnotationRefName: ref}
		index.Manifests = append(index.Manifests, d)
	}
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layout, "index.json"), b, 0o644)
}

func findRef(layout, ref string) (ocispec.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == ref {
			return d, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("layout %s: no image %q", layout, ref)
}

func readJSON(layout string, d digest.Digest, into any) error {
	b, err := os.ReadFile(blobFile(layout, d))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

func blobFile(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}
