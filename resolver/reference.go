package resolver

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference is a parsed and normalized image reference. The zero value is invalid.
type Reference struct {
	named reference.Named
}

// ParseReference parses "name", "name:tag", "registry/name:tag", "name@sha256:..." and
// "name:tag@sha256:...". A name without a registry is one of Docker Hub, a name of Docker Hub
// without a slash is in its library/, and a reference without tag and digest has the tag latest. If
// it has both, the digest decides.
//
// Class: errdefs.ErrInvalidArgument.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("reference %q: %v: %w", s, err, errdefs.ErrInvalidArgument)
	}
	ref := Reference{named: reference.TagNameOnly(named)}
	// The content store has only sha256 blobs.
	if d := ref.Digest(); d != "" && (d.Validate() != nil || d.Algorithm() != digest.SHA256) {
		return Reference{}, fmt.Errorf("reference %q: digest is not sha256: %w", s, errdefs.ErrInvalidArgument)
	}
	return ref, nil
}

// NewReference makes a reference from its parts: a registry such as localhost:5000, or docker.io
// for Docker Hub; a repository, where library/ may be left out for Docker Hub; and a tag or a
// digest, or "" for the tag latest.
//
// Class: errdefs.ErrInvalidArgument.
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
	sameRegistry := r.Domain() == registry || r.Domain() == "docker.io" && registry == "index.docker.io"
	sameRepo := r.Path() == repo || r.Path() == "library/"+repo
	if !sameRegistry || !sameRepo {
		return Reference{}, fmt.Errorf("reference: registry %q or repository %q is not a valid name: %w",
			registry, repo, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// String returns the normalized form, for example docker.io/library/alpine:latest.
func (r Reference) String() string {
	if r.named == nil {
		return ""
	}
	return r.named.String()
}

// Familiar returns the short form, for example alpine:latest.
func (r Reference) Familiar() string {
	if r.named == nil {
		return ""
	}
	return reference.FamiliarString(r.named)
}

// Domain returns the name of the registry, with its port if it has one, for example docker.io or
// localhost:5000.
func (r Reference) Domain() string { return reference.Domain(r.named) }

// Path returns the name of the repository in the registry, for example library/alpine.
func (r Reference) Path() string { return reference.Path(r.named) }

// Tag returns the tag, "" if the reference has only a digest.
func (r Reference) Tag() string {
	if t, ok := r.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest returns the digest, "" if the reference has only a tag.
func (r Reference) Digest() digest.Digest {
	if d, ok := r.named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}
