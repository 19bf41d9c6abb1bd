package hostsdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
)

func TestHostNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		registry, toml string
		want           []string
	}{
		{"example.com", "", []string{"example.com"}},
		{"example.com", "no toml", []string{"example.com"}},
		{"registry-1.docker.io", "", []string{"docker.io"}},
		{"docker.io", "server = \"https://registry-1.docker.io\"\n[host.\"https://mirror.test:5000/v2/hub\"]\n" +
			"[host.\"other.test\".header]\nx = \"y\"\n",
			[]string{"docker.io", "mirror.test:5000", "other.test", "docker.io"}},
	} {
		if got := Names(tt.registry, []byte(tt.toml)); !slices.Equal(got, tt.want) {
			t.Errorf("%s, %q: %q, want %q", tt.registry, tt.toml, got, tt.want)
		}
	}
}

// TestValidHosts compares Validate with containerd: what containerd decodes is valid, and what it
// ignores is not.
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
		if err := Validate([]byte(text)); (err == nil) != tc.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", tc.toml, err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		opts := config.HostOptions{HostDir: func(string) (string, error) { return dir, nil }}
		hosts, err := config.ConfigureHosts(t.Context(), opts)("r.test")
		if err != nil || (hosts[len(hosts)-1].Host == "other.test") != tc.ok {
			t.Errorf("%q: containerd decides differently: %v", tc.toml, err)
		}
	}
}

// TestClasses checks that errors of the file system have a class.
func TestClasses(t *testing.T) {
	t.Parallel()
	const bad = "a\x00b" // a path that no file system has
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "example.com", "hosts.toml"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, find := Find(bad, "example.com")
	_, read := Read(t.Context(), bad, "example.com")
	_, directory := Read(t.Context(), dir, "example.com")
	for what, err := range map[string]error{"Find": find, "Read": read, "Read of a directory": directory} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		errclasstest.Check(t, what, err)
	}
}
