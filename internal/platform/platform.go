// Package platform decides which platforms of an image suit a wanted platform.
//
// It owns nothing on disk.
//
// Its invariant: a platform suits only if its operating system and its architecture are the wanted ones. Only
// the variant may differ.
//
// The surprising rule: an index and a config are compared in different ways. An index offers a choice, so a
// variant in it has to be one that the wanted machine runs. A config without an index offers no choice, so a
// field that is missing in it is taken for the wanted one (docs/adr/0031).
package platform

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Wanted is the wanted platform. It is a platforms.MatchComparer for the entries of an index.
type Wanted struct {
	spec   ocispec.Platform // without a default for a missing variant
	strict platforms.Matcher
	runs   platforms.MatchComparer // matches what a machine of this platform runs, the best first
}

var _ platforms.MatchComparer = Wanted{}

// Parse reads OS/ARCH[/VARIANT], as containerd does; "" means this machine's platform. The error is
// errdefs.ErrInvalidArgument.
func Parse(s string) (Wanted, error) {
	if s == "" {
		return Of(platforms.DefaultSpec()), nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return Wanted{}, fmt.Errorf("platform %s: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	return Of(p), nil
}

// Of returns a Wanted for a platform.
func Of(p ocispec.Platform) Wanted {
	n := platforms.Normalize(p)
	if p.Variant == "" {
		p.Architecture = n.Architecture
	} else {
		p = n
		if p.Architecture == "arm64" && p.Variant == "" { // this means v8, and no later variant
			p.Variant = "v8"
		}
	}
	p.OS = n.OS
	return Wanted{spec: p, strict: platforms.NewMatcher(n), runs: platforms.Only(p)}
}

// String identifies the wanted platform.
func (w Wanted) String() string { return platforms.FormatAll(w.spec) }

// Spec returns the wanted platform, as Of takes it.
func (w Wanted) Spec() *ocispec.Platform { return &w.spec }

// Exactly reports whether p is the wanted platform, in any spelling.
func (w Wanted) Exactly(p ocispec.Platform) bool { return w.strict.Match(p) }

// Match reports whether an entry of an index with platform p suits.
func (w Wanted) Match(p ocispec.Platform) bool {
	return w.same(p) && (w.runs.Match(p) || w.oneSided(p))
}

// Less reports whether an entry with platform a suits better than one with platform b. The best is the wanted
// platform, then other platforms that a machine of it runs, then entries of which it is not known whether
// their variant suits.
func (w Wanted) Less(a, b ocispec.Platform) bool {
	if first, second := w.Exactly(a), w.Exactly(b); first != second {
		return first
	}
	if first, second := w.runs.Match(a), w.runs.Match(b); first != second {
		return first
	}
	return w.runs.Less(a, b)
}

// same reports whether operating system and architecture are the wanted ones, and the features suit.
func (w Wanted) same(p ocispec.Platform) bool {
	n, spec := platforms.Normalize(p), w.spec
	n.Variant, spec.Variant = "", ""
	return platforms.NewMatcher(spec).Match(n)
}

// oneSided reports whether only one of the two platforms has a variant. For arm, many builders leave the
// variant out, so such an entry is not excluded. For amd64, a variant always requires more than every machine
// has.
func (w Wanted) oneSided(p ocispec.Platform) bool {
	arm := w.spec.Architecture == "arm" || w.spec.Architecture == "arm64"
	return arm && (w.spec.Variant == "" || p.Variant == "")
}

// Allows reports whether a manifest without an index suits, by the platform in its config.
func (w Wanted) Allows(config ocispec.Platform) bool {
	p := w.Complete(config)
	p.OSVersion, p.OSFeatures = w.spec.OSVersion, w.spec.OSFeatures
	if w.spec.Variant == "" { // a manifest without an index offers no other variant
		p.Variant = ""
	}
	return w.Match(p)
}

// Complete returns the platform of a config, with the wanted fields in place of missing ones.
func (w Wanted) Complete(config ocispec.Platform) ocispec.Platform {
	if config.OS == "" {
		config.OS = w.spec.OS
	}
	if config.Architecture == "" {
		config.Architecture = w.spec.Architecture
	}
	if config.Variant == "" && platforms.Normalize(config).Architecture == w.spec.Architecture {
		config.Variant = w.spec.Variant
	}
	return config
}

// Contradicts reports whether the platform in a config differs from the platform of its manifest in the
// index. It is no contradiction if only one of them has a variant.
func Contradicts(config, index ocispec.Platform) bool {
	if config.Variant == "" || index.Variant == "" {
		config.Variant, index.Variant = "", ""
	}
	c, i := platforms.Normalize(config), platforms.Normalize(index)
	return config.OS == "" || config.Architecture == "" ||
		c.OS != i.OS || c.Architecture != i.Architecture || c.Variant != i.Variant
}

// Name returns the platform of a config as text, with "?" in place of missing fields.
func Name(config ocispec.Platform) string {
	if config.OS == "" {
		config.OS = "?"
	}
	if config.Architecture == "" {
		config.Architecture = "?"
	}
	return platforms.FormatAll(config)
}
