package hostsdir

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// FuzzValidate: what Validate accepts is TOML, and every other error has its class.
func FuzzValidate(f *testing.F) {
	f.Add([]byte("server = \"https://a\"\n[host.\"https://b\"]\ncapabilities = [\"pull\"]\nca = [\"x\"]\n"))
	f.Add([]byte("[host.\"b\".header]\nx = [\"1\", \"2\"]\nclient = [[\"a\", \"b\"]]\n"))
	f.Add([]byte("skip_verify = 3"))
	f.Fuzz(func(t *testing.T, data []byte) {
		err := Validate(data)
		var doc map[string]any
		switch syntax := toml.Unmarshal(data, &doc); {
		case err == nil && syntax != nil:
			t.Errorf("%q: accepted, but %v", data, syntax)
		case err != nil && !errdefs.IsInvalidArgument(err):
			t.Errorf("%q: %v", data, err)
		}
	})
}
