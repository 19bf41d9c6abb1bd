package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeFile writes a file of the test's directory and returns its name.
func writeFile(e *Env, name, text string) string {
	e.t.Helper()
	name = e.Path(name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		e.t.Fatal(err)
	}
	return name
}

// newForConfigs is New, except that it replaces containerd 2.2 with the pinned version. The config of 2.2 has neither
// version 4 nor optional entries of unpack_config, and 2.2 does not load its transfer service if an entry, like that
// for EROFS, names a plugin that it does not have.
func newForConfigs(t *testing.T) *Env {
	t.Helper()
	if strings.HasPrefix(os.Getenv("TANK_TEST_CONTAINERD"), "2.2.") {
		return NewWith(t, Pinned)
	}
	return New(t)
}

// dump lets containerd read a config and print the whole of it. It returns a file with that config, and containerd's
// stderr. The file has the content of the imports, so the list of imports in it is commented out.
func dump(e *Env, config string) (file, printed string) {
	e.t.Helper()
	r := e.Run("containerd", "--config", config, "config", "dump")
	mustSucceed(e.t, r)
	return writeFile(e, filepath.Base(config)+".dump", strings.Replace(r.Stdout, "\nimports = ", "\n# imports = ", 1)),
		r.Stderr
}

// configCheck runs `config check` and returns its exit code and its findings, without the note that nobody answers at
// the socket: most callers serve no root.
func (k *TankRoot) configCheck(file string) (code int, printed string) {
	k.env.t.Helper()
	r := k.env.Run(k.bin, "config", "check", file, "--config", k.ConfigFile(), "--root", k.Root, "--address", k.Socket)
	var b strings.Builder
	for line := range strings.Lines(r.Stdout) {
		if !strings.HasPrefix(line, "Note: Nobody answers") {
			b.WriteString(line)
		}
	}
	return r.Code, b.String()
}

// TestDropInDump: containerd knows every key of the printed drop-in, and `config check` reports nothing
// about it, before and after containerd has added its defaults.
func TestDropInDump(t *testing.T) {
	for name, s := range map[string]Setup{"full": {}, "second": {WithoutContent: true},
		"directory": {Directory: true}} {
		t.Run(name, func(t *testing.T) {
			e := newForConfigs(t)
			k := e.NewTank()
			o := ContainerdOptions{Name: "c"}
			if s.WithoutContent {
				k.Config += fmt.Sprintf("containerd_address = %q\n", e.containerdSocket(o))
			}
			if s.Directory {
				k.Config += directoryMode
			}
			o.Import = k.DropIn()
			config := writeFile(e, "config.toml", containerdConfig(e.Path("c"), o))
			whole, printed := dump(e, config)
			if strings.Contains(printed, "unknown key") {
				t.Errorf("containerd does not know every key: %s", printed)
			}
			for _, file := range []string{config, whole} {
				if code, printed := k.configCheck(file); code != 0 || printed != "" {
					t.Errorf("%s: exit code %d\n%s", file, code, printed)
				}
			}
		})
	}
}

// TestCheckReadsAsContainerd: `config check` reports the same about a config of several files and versions as
// about the one that containerd makes of it.
func TestCheckReadsAsContainerd(t *testing.T) {
	e := newForConfigs(t)
	k := e.NewTank()
	proxy := fmt.Sprintf("  type = \"snapshot\"\n  address = %q\n", k.Socket)
	config := writeFile(e, "config.toml", `version = 2
imports = ["conf.d/*.toml", "`+e.Path("late.toml")+`"]
disabled_plugins = ["io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/first.sock"
[proxy_plugins.tank]
  type = "snapshot"
  address = "/replaced"
  capabilities = ["rebase", "remap-ids"]
  [proxy_plugins.tank.exports]
    root = "/replaced"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.test/pause:1"
  max_concurrent_downloads = 5
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  discard_unpacked_layers = true
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."registry.test"]
  endpoint = ["http://registry.test"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gvisor]
  runtime_type = "io.containerd.runsc.v1"
  snapshot = "tank"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["walking"]
`)
	writeFile(e, "conf.d/a.toml", `version = 3
imports = ["../deeper.toml"]
disabled_plugins = ["io.containerd.content.v1.content", "io.containerd.snapshotter.v1.zfs"]
[proxy_plugins.tank]
`+proxy+`
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = 4
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "tank"
    differ = "tank-diff"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "tank"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["tank-diff", "walking"]
`)
	writeFile(e, "conf.d/b.toml", `version = 3
[plugins.'io.containerd.service.v1.diff-service']
  default = []
[plugins.'io.containerd.cri.v1.images']
  discard_unpacked_layers = false
[proxy_plugins.blobs]
  type = "content"
  address = "/elsewhere"
`)
	writeFile(e, "late.toml", `version = 4
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = 0
[plugins.'io.containerd.server.v1.grpc']
  address = "/run/late.sock"
`)
	writeFile(e, "deeper.toml", `version = 3
[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]
  snapshotter = "tank"
[grpc]
  address = "/run/deeper.sock"
`)
	whole, _ := dump(e, config)
	code, printed := k.configCheck(config)
	// Together these findings need every file to be read, in the right order.
	for _, want := range []string{"max_concurrent_unpacks = 0", `lacks "walking" in default`,
		`The runtime handler "kata"`, "registry.mirrors", "runtime_platforms"} {
		if !strings.Contains(printed, want) {
			t.Errorf("no finding contains %q", want)
		}
	}
	if strings.Contains(printed, "discard_unpacked_layers") || code != 1 {
		t.Errorf("exit code %d\n%s", code, printed)
	}
	// containerd does not print what it did not understand, so the finding about that is missing for its output.
	misnamed := func(line string) bool { return strings.Contains(line, "has runtime_platform, which") }
	var understood []string
	for line := range strings.Lines(printed) {
		if !misnamed(line) {
			understood = append(understood, line)
		}
	}
	if _, merged := k.configCheck(whole); strings.Join(understood, "") != merged {
		t.Errorf("findings about the files:\n%s\nand about the config that containerd makes of them:\n%s",
			printed, merged)
	}
	k.Config = "containerd_address = \"/run/first.sock\"\n"
	for _, file := range []string{config, whole} {
		_, printed := k.configCheck(file)
		if !strings.Contains(printed, "This containerd listens on /run/deeper.sock") {
			t.Errorf("%s: %s", file, printed)
		}
	}
}

// TestCheckIsRight: containerd behaves as `config check` reports.
func TestCheckIsRight(t *testing.T) {
	const transfer, images = "[plugins.'io.containerd.transfer.v1.local']", "[plugins.'io.containerd.cri.v1.images']"
	replace := func(old, now string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, now, 1) }
	}
	add := func(text string) func(string) string { return func(s string) string { return s + text } }
	for _, tc := range []struct {
		name    string
		dropIn  func(string) string
		finding string // part of the output of config check; "": no finding
		ends    string // part of the error with which containerd exits; "": it keeps running
		plugin  string // the plugin that containerd does not load; "": it loads all
		warns   string // part of what containerd logs, if it loads all plugins
	}{
		{name: "unknown type", dropIn: add("[proxy_plugins.x]\n  type = \"snapshotter\"\n  address = \"/x\"\n"),
			finding: "it panics", ends: "panic: plugin: no type"},
		{name: "name of a built-in", dropIn: add("[proxy_plugins.overlayfs]\n  type = \"snapshot\"\n  address = " +
			"\"/x\"\n"), finding: "panics at its start", ends: "panic: io.containerd.snapshotter.v1.overlayfs"},
		{name: "name of a disabled built-in", dropIn: func(s string) string {
			return replace("v1.content\"]", "v1.content\", \"io.containerd.snapshotter.v1.native\"]")(s) +
				"[proxy_plugins.native]\n  type = \"snapshot\"\n  address = \"/x\"\n"
		}, finding: "even if that is disabled", ends: "panic: io.containerd.snapshotter.v1.native"},
		{name: "annotations a bool", dropIn: replace(`annotations = "true"`, `annotations = true`),
			finding: "containerd does not start", ends: "failed to unmarshal TOML"},
		{name: "a missing import", dropIn: replace("version = 3", "version = 3\nimports = "+
			"[\"none.toml\"]"), finding: "containerd does not start", ends: "no such file"},
		{name: "a plugin's old name", dropIn: replace("disabled_plugins = [", "disabled_plugins = [\"cri\", "),
			finding: "containerd does not start", ends: "invalid disabled plugin URI"},
		{name: "a newer version", dropIn: replace("version = 3", "version = 5"), finding: "it does not start",
			ends: "expected containerd config version"},
		{name: "a word for a number", dropIn: replace("unpacks = 4", `unpacks = "four"`),
			finding: "which does not start", ends: "toml"},
		{name: "two content stores", dropIn: replace("disabled_plugins", "#"),
			finding: "Add \"io.containerd.content.v1.content\" to disabled_plugins",
			plugin:  "io.containerd.metadata.v1 bolt"},
		{name: "no content store", dropIn: replace("type = \"content\"", "type = \"sandbox\""),
			finding: "no proxy takes its place", plugin: "io.containerd.metadata.v1 bolt"},
		{name: "unknown snapshotter",
			dropIn: replace("    optional = true", "  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n "+
				"   platform = \"linux\"\n    snapshotter = \"stargz\"\n"),
			finding: "the transfer service is not loaded", plugin: "io.containerd.transfer.v1 local"},
		{name: "unknown differ", dropIn: replace("differ = \"walking\"\n    optional = true", "differ = \"walker\""),
			finding: "the transfer service is not loaded",
			plugin:  "io.containerd.transfer.v1 local"},
		{name: "unknown default differ", dropIn: replace(`"walking"]`, `"walking", "nydus"]`),
			finding: "the service is not loaded", plugin: "io.containerd.service.v1 diff-service"},
		{name: "CRI without a snapshotter",
			dropIn:  replace(images+"\n  snapshotter = \"tank\"", images+"\n  snapshotter = \"tnak\""),
			finding: "CRI is not loaded",
			plugin:  "io.containerd.cri.v1 images"},
		{name: "CRI's downloads", dropIn: replace(images, images+"\n  max_concurrent_downloads = 10"),
			finding: "CRI then pulls without", warns: "Falling back to local image pull"},
		{name: "annotations from CRI", dropIn: replace(images, images+"\n  disable_snapshot_annotations = false"),
			finding: "CRI then pulls without", warns: "Falling back to local image pull"},
		{name: "downloads in their place", dropIn: replace(transfer, transfer+"\n  max_concurrent_downloads = 10")},
		{name: "without overlayfs",
			dropIn: replace("v1.content\"]", "v1.content\", \"io.containerd.snapshotter.v1.overlayfs\"]")},
		{name: "with erofs", dropIn: func(s string) string {
			before, after, _ := strings.Cut(s, "EROFS:\n")
			return before + "EROFS\n" + strings.ReplaceAll(after, "  # ", "  ")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newForConfigs(t)
			k := e.NewTank()
			o := ContainerdOptions{Import: k.DropIn(), Name: "c"}
			text, err := os.ReadFile(o.Import)
			if err != nil {
				t.Fatal(err)
			}
			spoilt := tc.dropIn(string(text))
			if spoilt == string(text) {
				t.Fatal("the case does not change the drop-in")
			}
			writeFile(e, filepath.Base(o.Import), spoilt)
			config := writeFile(e, "c/config.toml", containerdConfig(e.Path("c"), o))
			code, printed := k.configCheck(config)
			if (code != 0) != (tc.finding != "") || !strings.Contains(printed, tc.finding) {
				t.Errorf("config check: exit code %d\n%s", code, printed)
			}
			p := e.Start("containerd", "containerd", "--config", config, "--log-level", "warn")
			if tc.ends != "" {
				code, err := p.Wait(time.Minute)
				if log := string(tail(p.Log, 1<<16)); err != nil || code == 0 || !strings.Contains(log, tc.ends) {
					t.Errorf("containerd: exit code %d, %v\n%s", code, err, clip(log))
				}
				return
			}
			var failed []string
			Eventually(t, time.Minute, "containerd answers", func() bool {
				r := e.Run("ctr", "--address", e.containerdSocket(o), "--connect-timeout", "2s", "plugins", "ls")
				failed = nil
				for line := range strings.Lines(r.Stdout) {
					if f := strings.Fields(line); len(f) == 4 && f[3] == "error" {
						failed = append(failed, f[0]+" "+f[1])
					}
				}
				return r.Code == 0 && strings.Contains(r.Stdout, "io.containerd.grpc.v1")
			})
			log := string(tail(p.Log, 1<<16))
			switch {
			case tc.plugin != "" && !strings.Contains("\n"+strings.Join(failed, "\n")+"\n", "\n"+tc.plugin+"\n"):
				t.Errorf("%s is loaded; not loaded are %q", tc.plugin, failed)
			case tc.plugin == "" && len(failed) > 0:
				t.Errorf("not loaded: %q\n%s", failed, clip(log))
			case !strings.Contains(log, tc.warns):
				t.Errorf("no log entry contains %q\n%s", tc.warns, clip(log))
			}
		})
	}
}
