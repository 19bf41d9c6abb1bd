package main

import (
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestNames runs commands with the names and the platforms that one image has.
func TestNames(t *testing.T) {
	reg := registrytest.New(t)
	layer := reg.Blob(ocispec.MediaTypeImageLayer, greeting(t))
	image := func(config string, p ocispec.Platform) ocispec.Descriptor {
		d := reg.Image("", ocispec.Platform{OS: "linux", Architecture: config}, []ocispec.Descriptor{layer},
			[]digest.Digest{layer.Digest})
		d.Platform = &p
		return d
	}
	old := image("", ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"})
	index := reg.Index("1", old, image("s390x", ocispec.Platform{OS: "linux", Architecture: "s390x"}))
	testscript.Run(t, testscript.Params{
		Setup: func(env *testscript.Env) error {
			env.Setenv("REGISTRY", reg.Host)
			env.Setenv("INDEX", index.Digest.String())
			env.Setenv("MANIFEST", old.Digest.String())
			return nil
		},
		Dir:                 "testdata/names",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"await": await,
		},
	})
}
