package resolver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/hostsdir"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestHostsThatCannotBeRead checks that a hosts.toml which cannot be used ends the pull with its
// path, before a request.
func TestHostsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	write := func(text string) func(string) error {
		return func(file string) error { return os.WriteFile(file, []byte(text), 0o600) }
	}
	for name, tc := range map[string]struct {
		make  func(file string) error
		names string
	}{
		"syntax":            {write("server = \"http://127.0.0.1:1\"\n[host."), "line 2, column 6"},
		"capability":        {write("[host.\"http://h\"]\ncapabilities = [\"fetch\"]\n"), "fetch"},
		"directory":         {func(file string) error { return os.Mkdir(file, 0o700) }, "a directory"},
		"a link to nothing": {func(file string) error { return os.Symlink("nothing", file) }, "no such file"},
		"a link to itself":  {func(file string) error { return os.Symlink("hosts.toml", file) }, "symbolic links"},
		"too long":          {write(strings.Repeat("#\n", hostsdir.MaxFileSize)), "more than"},
		"permission": {func(file string) error {
			if os.Getuid() == 0 {
				return os.Symlink("/proc/self/mem", file) // which root cannot read either
			}
			return errors.Join(write("")(file), os.Chmod(file, 0))
		}, "hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			image(reg)
			root := registrytest.CertsDir(t, reg.Host, nil)
			file := filepath.Join(root, strings.ReplaceAll(reg.Host, ":", "_")+"_", "hosts.toml")
			if err := tc.make(file); err != nil {
				t.Fatal(err)
			}
			r := newResolver(t, func(o *Options) { o.HostsDir = root })
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), file) ||
				!strings.Contains(fmt.Sprint(err), tc.names) || !cause.Is(err, cause.Configuration) {
				t.Error(err)
			}
			if len(reg.Requests()) != 0 {
				t.Errorf("asked %q", reg.Requests())
			}
		})
	}
}
