package resolver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestValidHosts: what containerd's code decodes is valid, and what it goes on without is not.
func TestValidHosts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		toml string
		ok   bool
	}{
		{``, true},
		{`capabilities = ["pull", "Resolve", "push", "referrers"]`, true},
		{`skip_verify = true`, true},
		{`dial_timeout = "3s"`, true},
		{`header = {a = "b", c = ["d", "e"]}`, true},
		{`unknown = 1`, true},
		{"[host.\"https://m\"]\noverride_path = true\n[host.\"https://m\".header]\nx = \"y\"", true},
		{`[host."m:5000"]`, true},
		{`[`, false},
		{`x`, false},
		{"x = 1\nx = 2", false},
		{`capabilities = ["pull", "guess"]`, false},
		{`capabilities = "pull"`, false},
		{`skip_verify = "yes"`, false},
		{`override_path = 1`, false},
		{`dial_timeout = "soon"`, false},
		{`dial_timeout = 3`, false},
		{`ca = 1`, false},
		{`ca = ["a", 1]`, false},
		{`client = 1`, false},
		{`client = [1]`, false},
		{`client = [["a", "b", "c"]]`, false},
		{`client = [["a"]]`, false},
		{`header = "a"`, false},
		{`header = {a = 1}`, false},
		{`header = {a = ["b", 1]}`, false},
		{`host = 1`, false},
		{"[host.\"https://m\"]\ncapabilities = [\"guess\"]", false},
		{"[host.\"https://%zz\"]", false},
		{"\ufeffskip_verify = true", false},
		{"skip_verify = true\n\xff", false},
	} {
		text := "server = \"https://other.test\"\n" + tc.toml
		if strings.HasPrefix(tc.toml, "\ufeff") {
			text = tc.toml + "\nserver = \"https://other.test\""
		}
		if err := ValidHosts([]byte(text)); (err == nil) != tc.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", tc.toml, err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		opts := config.HostOptions{HostDir: func(string) (string, error) { return dir, nil }}
		hosts, err := config.ConfigureHosts(t.Context(), opts)("r.test")
		if err != nil || (hosts[len(hosts)-1].Host == "other.test") != tc.ok {
			t.Errorf("%q: containerd has another opinion: %v", tc.toml, err)
		}
	}
}

// TestHostsThatCannotBeRead: such a file stops the pull, with its name, and no registry is asked.
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
		"too long":          {write(strings.Repeat("#\n", MaxHostsFile)), "more than"},
		"permission": {func(file string) error {
			if os.Getuid() == 0 {
				return os.Symlink("/proc/self/mem", file) // what root cannot read either
			}
			return errors.Join(write("")(file), os.Chmod(file, 0))
		}, "hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			image(reg)
			root := certsDir(t, reg.Host, nil)
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
