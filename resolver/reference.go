package resolver

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference is a parsed and normalized image reference. The zero value names nothing.
type Reference struct {
	named reference.Named
}

// ParseReference reads `name`, `name:tag`, `registry/name:tag`, `name@sha256:…` and
// `name:tag@sha256:…`. A name without registry is Docker Hub's, one without a slash is in its
// library/, and one without tag and digest means the tag latest. With both, the digest decides.
//
// Class: ErrInvalidArgument.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("reference %q: %v: %w", s, err, errdefs.ErrInvalidArgument)
	}
	ref := Reference{named: reference.TagNameOnly(named)}
	// blobs/ has a folder for sha256 alone, and a digest nobody can verify is no digest.
	if d := ref.Digest(); d != "" && (d.Validate() != nil || d.Algorithm() != digest.SHA256) {
		return Reference{}, fmt.Errorf("reference %q: digest is not sha256: %w", s, errdefs.ErrInvalidArgument)
	}
	return ref, nil
}

// NewReference makes a reference of its parts: a registry such as localhost:5000 or, for Docker
// Hub, docker.io; a repository, where Docker Hub's own images may leave library/ out; and a tag or
// a digest, or empty for the tag latest.
//
// Class: ErrInvalidArgument.
func NewReference(registry, repo, ref string) (Reference, error) {
	s := registry + "/" + repo
	switch {
	case ref == "":
	case strings.Contains(ref, ":"):
		s += "@" + ref
	default:
		s += ":" + ref
	}
	r, err := ParseReference(s)
	if err != nil {
		return Reference{}, err
	}
	if r.Domain() != registry && (r.Domain() != "docker.io" || registry != "index.docker.io") || r.Path() != repo && r.Path() != "library/"+repo {
		return Reference{}, fmt.Errorf("reference: registry %q or repository %q: not a name: %w", registry, repo, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// String is the normalized form, for example docker.io/library/alpine:latest.
func (r Reference) String() string {
	if r.named == nil {
		return ""
	}
	return r.named.String()
}

// Familiar is the short form that people type, for example alpine:latest.
func (r Reference) Familiar() string {
	if r.named == nil {
		return ""
	}
	return reference.FamiliarString(r.named)
}

// Domain is the registry's name with its port, for example docker.io or localhost:5000.
func (r Reference) Domain() string { return reference.Domain(r.named) }

// Path is the repository's name inside the registry, for example library/alpine.
func (r Reference) Path() string { return reference.Path(r.named) }

// Tag is the tag, or empty when the reference has a digest alone.
func (r Reference) Tag() string {
	if t, ok := r.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest is the digest, or empty when the reference has a tag alone.
func (r Reference) Digest() digest.Digest {
	if d, ok := r.named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}
