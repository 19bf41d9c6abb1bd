// Package platform decides which platform of an image suits the platform that was asked for.
//
// It owns nothing on disk.
//
// Its invariant: a platform suits only if its operating system and its architecture are those that were asked
// for. Only the variant may differ.
//
// The surprising rule: an index and a config are compared in different ways. An index offers a choice, so a
// variant has to be one that the wanted machine runs. A config that no index describes is all there is, so a
// field that it leaves out is taken to be the one that was asked for (docs/adr/0031).
package platform

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Wanted is a platform that was asked for. It is a platforms.MatchComparer for the entries of an index.
type Wanted struct {
	spec   ocispec.Platform // as asked: a variant that was left out is empty
	strict platforms.Matcher
	runs   platforms.MatchComparer // what a machine of this platform runs, the best first
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

// Of returns the Wanted of a platform.
func Of(p ocispec.Platform) Wanted {
	n := platforms.Normalize(p)
	if p.Variant == "" {
		p.Architecture = n.Architecture
	} else {
		p = n
		if p.Architecture == "arm64" && p.Variant == "" { // v8 was asked for, and nothing above it
			p.Variant = "v8"
		}
	}
	p.OS = n.OS
	return Wanted{spec: p, strict: platforms.NewMatcher(n), runs: platforms.Only(p)}
}

// String identifies what was asked for.
func (w Wanted) String() string { return platforms.FormatAll(w.spec) }

// Spec is what was asked for, for Of.
func (w Wanted) Spec() *ocispec.Platform { return &w.spec }

// Exactly reports whether p is the platform that was asked for, in whatever spelling.
func (w Wanted) Exactly(p ocispec.Platform) bool { return w.strict.Match(p) }

// Match reports whether an entry of an index with the platform p suits.
func (w Wanted) Match(p ocispec.Platform) bool {
	return w.same(p) && (w.runs.Match(p) || w.oneSided(p))
}

// Less reports whether an entry with the platform a suits better than one with b: first the platform that was asked
// for, then what else a machine of it runs, then entries of which the variant is not known to fit.
func (w Wanted) Less(a, b ocispec.Platform) bool {
	if first, second := w.Exactly(a), w.Exactly(b); first != second {
		return first
	}
	if first, second := w.runs.Match(a), w.runs.Match(b); first != second {
		return first
	}
	return w.runs.Less(a, b)
}

// same reports whether the operating systems and the architectures are equal, and the features suit.
func (w Wanted) same(p ocispec.Platform) bool {
	n, spec := platforms.Normalize(p), w.spec
	n.Variant, spec.Variant = "", ""
	return platforms.NewMatcher(spec).Match(n)
}

// oneSided reports whether only one of both names a variant. For arm, where many builders leave it out, that does not
// exclude an entry. A variant of amd64 always means more than every machine has.
func (w Wanted) oneSided(p ocispec.Platform) bool {
	arm := w.spec.Architecture == "arm" || w.spec.Architecture == "arm64"
	return arm && (w.spec.Variant == "" || p.Variant == "")
}

// Allows reports whether a manifest that no index describes suits, by the platform in its config.
func (w Wanted) Allows(config ocispec.Platform) bool {
	p := w.Complete(config)
	p.OSVersion, p.OSFeatures = w.spec.OSVersion, w.spec.OSFeatures
	if w.spec.Variant == "" { // a manifest that stands alone offers no other
		p.Variant = ""
	}
	return w.Match(p)
}

// Complete returns the platform of a config with the fields that were asked for in the place of those that it leaves
// out.
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

// Contradicts reports whether the platform in a config is another one than that which the index gives for its
// manifest. A variant that only one of both names is no contradiction.
func Contradicts(config, index ocispec.Platform) bool {
	if config.Variant == "" || index.Variant == "" {
		config.Variant, index.Variant = "", ""
	}
	c, i := platforms.Normalize(config), platforms.Normalize(index)
	return config.OS == "" || config.Architecture == "" ||
		c.OS != i.OS || c.Architecture != i.Architecture || c.Variant != i.Variant
}

// Name returns the platform of a config as text, with "?" in the place of a field that it leaves out.
func Name(config ocispec.Platform) string {
	if config.OS == "" {
		config.OS = "?"
	}
	if config.Architecture == "" {
		config.Architecture = "?"
	}
	return platforms.FormatAll(config)
}
