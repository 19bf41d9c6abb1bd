package containerdconfig

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// TestDropIn decodes the drop-in as containerd does, with paths that try to break out of their quotes.
func TestDropIn(t *testing.T) {
	for _, path := range []string{"/a", "/a b", `/a"b`, `/a\b`, "/a\nb", "/ä\x7f", "/%s"} {
		for _, in := range []Install{
			{Content: true}, {}, {Content: true, UserNS: true}, {UserNS: true},
			{Content: true, Directory: true}, {Directory: true, UserNS: true},
		} {
			in.Root, in.Address = path, path+".sock"
			text, err := in.DropIn()
			if err != nil {
				t.Fatal(err)
			}
			var m struct {
				Config
				Version int
			}
			if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&m); err != nil {
				t.Fatalf("%s\n%v", text, err)
			}
			_, proxied := m.ProxyPlugins["tank-content"]
			if proxied != in.Content || (len(m.DisabledPlugins) == 1) != in.Content {
				t.Errorf("%+v: %+v", in, m)
			}
			tank := m.ProxyPlugins["tank"]
			want := "[rebase remap-ids]"
			if in.UserNS || in.Directory {
				want = "[]"
			}
			if tank.Address != path+".sock" || tank.Exports["root"] != path || fmt.Sprint(tank.Capabilities) != want {
				t.Errorf("%+v: %+v", in, tank)
			}
		}
	}
	if _, err := (Install{Root: "/\xff", Address: "/x"}).DropIn(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path that is not UTF-8: %v", err)
	}
}

// checked writes a containerd config that imports the drop-in of in, and checks it. The functions main and dropIn
// change the two files first.
func checked(t *testing.T, in Install, main, dropIn func(string) string) (wrong, notes []string) {
	t.Helper()
	dir := t.TempDir()
	text, err := in.DropIn()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config.toml": fmt.Sprintf("root = %q\n", dir) + main("version = 3\nimports = [\"tank.toml\"]\n"),
		"tank.toml":   dropIn(text),
		"late.toml": "version = 3\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  " +
			"platform = \"linux\"\n  snapshotter = \"overlayfs\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := in.Check(t.Context(), filepath.Join(dir, "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Note {
			notes = append(notes, f.String())
		} else {
			wrong = append(wrong, f.String())
		}
		if !strings.HasSuffix(f.String(), ".") || strings.Contains(f.String(), "%!") ||
			strings.Contains(f.String(), "\n") {
			t.Errorf("not a sentence on one line: %q", f.String())
		}
	}
	return wrong, notes
}

func same(s string) string { return s }

// replace returns a function that replaces the first old in a text, and fails the test if there is none.
func replace(t *testing.T, old, with string) func(string) string {
	return func(s string) string {
		t.Helper()
		if !strings.Contains(s, old) {
			t.Fatalf("the drop-in lacks %q:\n%s", old, s)
		}
		return strings.Replace(s, old, with, 1)
	}
}

func add(text string) func(string) string { return func(s string) string { return s + "\n" + text } }

// cut returns a function that removes the first line that begins with begin. If that is the head of a section, it also
// removes the more deeply indented lines that follow.
func cut(t *testing.T, begin string) func(string) string {
	return func(s string) string {
		t.Helper()
		lines := strings.SplitAfter(s, "\n")
		indent := func(l string) int { return len(l) - len(strings.TrimLeft(l, " ")) }
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimLeft(l, " "), begin) })
		if i < 0 {
			t.Fatalf("the drop-in lacks %q:\n%s", begin, s)
		}
		j := i + 1
		for j < len(lines) && strings.HasPrefix(begin, "[") && indent(lines[j]) > indent(lines[i]) {
			j++
		}
		return strings.Join(append(slices.Clone(lines[:i]), lines[j:]...), "")
	}
}

// TestCheckClean: there are no findings about a drop-in that is imported unchanged, for every install. This
// also holds if the importing config has version 2 and other values for everything.
func TestCheckClean(t *testing.T) {
	full := Install{Root: "/srv/tank", Address: filepath.Join(t.TempDir(), "s"), Content: true}
	l, err := net.Listen("unix", full.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	second := full
	second.Content, second.ContainerdAddress = false, DefaultAddress
	directory, inside := full, full
	directory.Directory, inside.UserNS = true, true
	older := func(string) string {
		return `version = 2
imports = ["/dev/null", "tank.toml"]
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  snapshotter = "overlayfs"
[proxy_plugins.tank]
  type = "snapshot"
  address = "/replaced/as/a/whole"
  [proxy_plugins.tank.exports]
    root = "/replaced"
`
	}
	for name, in := range map[string]Install{
		"full": full, "second": second, "directory": directory, "user namespace": inside,
	} {
		for _, main := range []func(string) string{same, older} {
			if wrong, notes := checked(t, in, main, same); len(wrong)+len(notes) > 0 {
				t.Errorf("%s: %q, %q", name, wrong, notes)
			}
		}
	}
	// If this machine has such files, the findings would be about them.
	if there, err := filepath.Glob(defaultImports); err != nil || len(there) == 0 {
		wrong, notes := checked(t, full, replaceImport(`imports = ["`+defaultImports+`", "tank.toml"]`), same)
		if len(wrong)+len(notes) > 0 {
			t.Errorf("with containerd's own import: %q, %q", wrong, notes)
		}
	}
	withoutCRI := func(string) string {
		return "version = 3\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\nimports = [\"t*.toml\"]\n"
	}
	if wrong, _ := checked(t, full, withoutCRI, cut(t, "[plugins.'io.containerd.cri.v1.images']")); len(wrong) > 0 {
		t.Errorf("without CRI: %q", wrong)
	}
	_, notes := checked(t, Install{Root: "/srv/tank", Address: "/none", Content: true}, same, same)
	if len(notes) != 1 || !strings.Contains(notes[0], "Nobody answers on /none") {
		t.Errorf("without a daemon: %q", notes)
	}
}

// TestCheck makes one mistake in each row, and expects one finding about it.
func TestCheck(t *testing.T) {
	full := Install{Root: "/srv/tank", Address: "/none", Content: true}
	second := Install{Root: "/srv/tank", Address: "/none", ContainerdAddress: DefaultAddress}
	directory := Install{Root: "/srv/tank", Address: "/none", Content: true, Directory: true}
	inside := Install{Root: "/srv/tank", Address: "/none", Content: true, UserNS: true}
	skipping := Install{Root: "/srv/tank", Address: "/none", Content: true, SkipKnownBlobs: true}
	const (
		images   = "[plugins.'io.containerd.cri.v1.images']\n"
		runtimes = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
	)
	setImages := func(line string) func(string) string { return replace(t, images, images+"  "+line+"\n") }
	registry := func(kind string) func(string) string {
		return add("[plugins.'io.containerd.cri.v1.images'.registry." + kind + ".\"r.test\"]\n  endpoint = " +
			"[\"http://r\"]\n")
	}
	for _, tc := range []struct {
		name   string
		in     Install
		main   func(string) string
		dropIn func(string) string
		want   []string // parts of the findings, one for each finding
	}{
		{"skipped blobs under an isolating policy", skipping, same,
			add("[plugins.'io.containerd.metadata.v1.bolt']\n  content_sharing_policy = \"isolated\"\n"),
			[]string{"a namespace gets layers that its registry does not let it have"}},
		{"a config without Tank", full, func(string) string { return "version = 3\n" }, same,
			[]string{"Tank is not containerd's content store", "No proxy plugin of type snapshot has Tank's " +
				"address /none"}},
		{"snapshotter elsewhere", full, same, replace(t, `"/none"`, `"/other.sock"`),
			[]string{"[proxy_plugins.tank] has the address /other.sock; Tank listens on /none"}},
		{"content elsewhere", full, same, replace(t, "type = \"content\"\n  address = \"/none\"",
			"type = \"content\"\n  address = \"/other\""),
			[]string{"[proxy_plugins.tank-content] has the address /other"}},
		{"another content store", full, same, replace(t, "[proxy_plugins.tank-content]\n  type = "+
			"\"content\"\n  address = \"/none\"",
			"[proxy_plugins.x]\n  type = \"content\"\n  address = \"/other\""), []string{"The content store " +
			"is the proxy x and not Tank"}},
		{"differ elsewhere", full, same, replace(t, "type = \"diff\"\n  address = \"/none\"",
			"type = \"diff\"\n  address = \"/other\""),
			[]string{"[proxy_plugins.tank-diff] has the address /other"}},
		{"two content stores", full, same, cut(t, "disabled_plugins"),
			[]string{`Add "io.containerd.content.v1.content" to disabled_plugins`}},
		{"three content stores", full, same, add("[proxy_plugins.more]\n  type = " +
			"\"io.containerd.content.v1\"\n  address = \"/x\"\n"),
			[]string{"There are 2 proxies of type content (more, tank-content)"}},
		{"no content store", full, same, cut(t, "[proxy_plugins.tank-content]"), []string{"no proxy takes its place"}},
		{"disabled content proxy", full, same, replace(t, "v1.content\"]", "v1.content\", "+
			"\"io.containerd.content.v1.tank-content\"]"),
			[]string{"no proxy takes its place"}},
		{"neither install", full, same, func(s string) string {
			return cut(t, "disabled_plugins")(cut(t, "[proxy_plugins.tank-content]")(s))
		}, []string{"set containerd_address in Tank's own config"}},
		{"both installs", second, same, func(string) string { s, _ := full.DropIn(); return s },
			[]string{"Tank's own config has containerd_address"}},
		{"another containerd", second, add("[grpc]\naddress = \"/run/other.sock\"\n"), same,
			[]string{"This containerd listens on /run/other.sock, but containerd_address"}},
		{"another containerd, version 4", second, add("[plugins.'io.containerd.server.v1.grpc']\naddress = " +
			"\"/run/o.sock\"\n"), same,
			[]string{"This containerd listens on /run/o.sock"}},
		{"disabled snapshotter", full, same, replace(t, "v1.content\"]", "v1.content\", "+
			"\"io.containerd.snapshotter.v1.tank\"]"),
			[]string{"No proxy plugin of type snapshot"}},

		{"unknown type", full, same, add("[proxy_plugins.x]\n  type = \"snapshotter\"\n  address = \"/x\"\n"),
			[]string{`has the type "snapshotter", which containerd does not know: it panics`}},
		{"name of a built-in", full, same, add("[proxy_plugins.overlayfs]\n  type = \"snapshot\"\n  address " +
			"= \"/x\"\n"), []string{"containerd's own plugin io.containerd.snapshotter.v1.overlayfs"}},
		{"name of a disabled built-in", full, same, add("[proxy_plugins.walking]\n  type = \"diff\"\n  " +
			"address = \"/x\"\n"), []string{"panics at its start, even if that is disabled"}},
		{"no address", full, same, add("[proxy_plugins.x]\n  type = \"snapshot\"\n"),
			[]string{"[proxy_plugins.x] has no address"}},

		{"no rebase", full, same, replace(t, `"rebase", `, ""),
			[]string{`lacks the capability "rebase": layers are unpacked one after the other`}},
		{"no remap-ids", full, same, replace(t, `, "remap-ids"`, ""), []string{`lacks the capability "remap-ids"`}},
		{"rebase in directory mode", directory, same, replace(t, "capabilities = []",
			`capabilities = ["rebase"]`), []string{"in directory mode: files that upper layers delete would " +
			"come back"}},
		{"remap-ids in directory mode", directory, same, replace(t, "capabilities = []",
			`capabilities = ["remap-ids"]`),
			[]string{`the capability "remap-ids", which Tank does not announce in directory mode`}},
		{"rebase in a user namespace", inside, same, replace(t, "capabilities = []",
			`capabilities = ["rebase"]`), []string{"inside a user namespace: files that upper layers delete " +
			"would come back"}},
		{"no root", full, same, cut(t, "root ="), []string{"exports no root"}},
		{"wrong root", full, same, replace(t, `"/srv/tank"`, `"/srv/other"`), []string{"exports the root " +
			"/srv/other, but Tank's is /srv/tank"}},
		{"no annotations", full, same, cut(t, "enable_remote"),
			[]string{`enable_remote_snapshot_annotations = "" instead of "true"`}},
		{"annotations not true", full, same, replace(t, `annotations = "true"`, `annotations = "yes"`),
			[]string{`enable_remote_snapshot_annotations = "yes"`}},
		{"annotations a bool", full, same, replace(t, `annotations = "true"`, `annotations = true`),
			[]string{"containerd does not start. Values of exports are strings"}},

		{"one unpack at a time", full, same, cut(t, "max_concurrent_unpacks"), []string{"max_concurrent_unpacks = 1"}},
		{"no unpack_config", full, same, func(s string) string {
			return cut(t, "[[plugins")(cut(t, "[[plugins")(s))
		}, []string{`has no unpack_config for the snapshotter "tank"`}},
		{"no unpack_config for Tank", full, same, cut(t, "[[plugins"),
			[]string{`has no unpack_config for the snapshotter "tank"`}},
		{"a replaced unpack_config", full, replaceImport(`imports = ["tank.toml", "late.toml"]`), same,
			[]string{`has no unpack_config for the snapshotter "tank"`}},
		{"no unpack_config for overlayfs", full, same, func(s string) string {
			i := strings.Index(s, "  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]] #")
			return s[:i] + cut(t, "[[plugins")(s[i:])
		}, []string{"has no unpack_config for overlayfs"}},
		{"another differ", full, same, replace(t, `differ = "tank-diff"`, `differ = "walking"`),
			[]string{`with the differ "walking" instead of "tank-diff"`}},
		{"no differ in unpack_config", full, same, cut(t, `differ = "tank-diff"`),
			[]string{`with the differ "walking" instead of "tank-diff"`}},
		{"unknown snapshotter", full, same, replace(t, "    optional = true", "  "+
			"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n    snapshotter = \"stargz\""),
			[]string{`for the snapshotter "stargz", which does not exist: the transfer service is not loaded`}},
		{"unknown differ", full, same, replace(t, "differ = \"walking\"\n    optional = true",
			"differ = \"walker\""), []string{`the differ "walker", which does not exist`}},
		{"a string for a number", full, same, replace(t, "unpacks = 4", `unpacks = "4"`),
			[]string{"[plugins.'io.containerd.transfer.v1.local'] is not as containerd expects it"}},
		{"no diff proxy", full, same, func(s string) string {
			return replace(t, `default = ["tank-diff", "walking"]`, `default = ["walking"]`)(replace(t,
				`differ = "tank-diff"`, `differ = "walking"`)(cut(t, "[proxy_plugins.tank-diff]")(s)))
		}, []string{"No proxy plugin of type diff"}},

		{"no default differs", full, same, cut(t, "default ="), []string{`lacks "tank-diff" in default`}},
		{"no walking", full, same, replace(t, `, "walking"]`, "]"), []string{`lacks "walking" in default`}},
		{"wrong order", full, same, replace(t, `["tank-diff", "walking"]`, `["walking", "tank-diff"]`),
			[]string{`"tank-diff" after "walking"`}},
		{"unknown default differ", full, same, replace(t, `"walking"]`, `"walking", "nydus"]`),
			[]string{`the differ "nydus" in default, which does not exist`}},

		{"CRI elsewhere", full, same, replace(t, images+"  snapshotter = \"tank\"",
			images+"  snapshotter = \"overlayfs\""), []string{"pods do not use Tank"}},
		{"CRI by default", full, same, cut(t, "[plugins.'io.containerd.cri.v1.images']"),
			[]string{"pods do not use Tank"}},
		{"CRI without a snapshotter", full, same, replace(t, images+"  snapshotter = \"tank\"",
			images+"  snapshotter = \"tnak\""),
			[]string{`the snapshotter "tnak", which does not exist: CRI is not loaded`, "pods do not use Tank"}},
		{"annotations from CRI", full, same, setImages("disable_snapshot_annotations = false"),
			[]string{"disable_snapshot_annotations = false: CRI then pulls without"}},
		{"discarded layers", full, same, setImages("discard_unpacked_layers = true"),
			[]string{"discard_unpacked_layers = true: CRI then pulls without"}},
		{"CRI's downloads", full, same, setImages("max_concurrent_downloads = 10"),
			[]string{"max_concurrent_downloads = 10: CRI then pulls without"}},
		{"sync", full, same, setImages("image_pull_with_sync_fs = true"), []string{"image_pull_with_sync_fs " +
			"= true: CRI then pulls without"}},
		{"local", full, same, setImages("use_local_image_pull = true"), []string{"use_local_image_pull = " +
			"true: CRI then pulls without"}},
		{"mirrors", full, same, registry("mirrors"), []string{"registry.mirrors: CRI then pulls without"}},
		{"configs", full, same, registry("configs"), []string{"registry.configs: CRI then pulls without"}},
		{"auths", full, same, registry("auths"), []string{"registry.auths: CRI then pulls without"}},
		{"mirrors in version 2", full, func(string) string {
			return "version = 2\nimports = [\"tank.toml\"]\n" +
				"[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"r.test\"]\nendpoint = [\"http://r\"]\n"
		}, same, []string{"registry.mirrors: CRI then pulls without"}},
		{"downloads in version 1", full, func(string) string {
			return "imports = [\"tank.toml\"]\n[plugins.cri]\nmax_concurrent_downloads = 5\n"
		}, same, []string{"max_concurrent_downloads = 5: CRI then pulls without"}},

		{"a handler's images elsewhere", full, same, add("[plugins.'io.containerd.cri.v1.images'" +
			".runtime_platforms.kata]\n  snapshotter = \"overlayfs\"\n"),
			[]string{`The runtime handler "kata" has its images pulled with "overlayfs" ` +
				`and its containers made with "tank"`}},
		{"a handler's containers elsewhere", full, same,
			add("[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]\n  snapshotter = \"tank\"\n" +
				runtimes + ".kata]\n  snapshotter = \"overlayfs\"\n"),
			[]string{`pulled with "tank" and its containers made with "overlayfs"`}},
		{"a handler in one place", full, same, func(s string) string {
			return replace(t, images+"  snapshotter = \"tank\"",
				"[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]\n  snapshotter = \"tank\"")(s)
		}, []string{`pulled with "tank" and its containers made with "overlayfs"`, "pods do not use Tank"}},
		{"the key of a migration", full, same, add("[plugins.'io.containerd.cri.v1.images'.runtime_platform.kata]\n" +
			"  snapshotter = \"tank\"\n"), []string{"the key is runtime_platforms"}},
		{"a migration", full, func(string) string {
			return "version = 2\nimports = [\"tank.toml\"]\n" +
				"[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nsnapshot = \"tank\"\n"
		}, same, []string{"the key is runtime_platforms"}},
		{"the old pause image", full, same, setImages(`sandbox_image = "r.test/pause:1"`),
			[]string{"has sandbox_image, which containerd ignores there"}},
		{"old names in version 3", full, add("[plugins.'io.containerd.grpc.v1.cri'.containerd]\n  " +
			"snapshotter = \"tank\"\n"), same,
			[]string{"keys of version 2 in [plugins.'io.containerd.grpc.v1.cri'], which containerd 2.2 " +
				"ignores in a file of version 3"}},
		{"old names in version 4", full, func(s string) string {
			return strings.Replace(s, "version = 3", "version = 4", 1) +
				"[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = \"x\"\n"
		}, same, []string{"which containerd ignores in a file of version 4"}},

		{"an import that does not exist", full, replaceImport(`imports = ["tank.toml", "none.toml"]`), same,
			[]string{"none.toml, which does not exist: containerd does not start"}},
		{"a malformed pattern", full, replaceImport(`imports = ["tank.toml", "[*.toml"]`), same,
			[]string{"which is no pattern"}},
		{"syntax", full, same, replace(t, "[proxy_plugins.tank]", "[proxy_plugins.tank"),
			[]string{"tank.toml, line 4, column"}},
		{"a list for a name", full, same, replace(t, `type = "snapshot"`, `type = ["snapshot"]`),
			[]string{"tank.toml, line 5, column"}},
		{"a plugin's old name", full, func(s string) string { return "disabled_plugins = [\"cri\"]\n" + s }, same,
			[]string{"is not the name of a plugin since version 2: containerd does not start"}},
		{"a newer version", full, func(s string) string {
			return strings.Replace(s, "version = 3", "version = 5", 1)
		}, same, []string{"has version 5; the newest"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wrong, _ := checked(t, tc.in, tc.main, tc.dropIn)
			if len(wrong) != len(tc.want) {
				t.Errorf("%d findings, want %d:\n%s", len(wrong), len(tc.want), strings.Join(wrong, "\n"))
			}
			for _, want := range tc.want {
				if !slices.ContainsFunc(wrong, func(s string) bool { return strings.Contains(s, want) }) {
					t.Errorf("no finding contains %q:\n%s", want, strings.Join(wrong, "\n"))
				}
			}
		})
	}
}

// replaceImport returns a function that returns a config with this line of imports.
func replaceImport(imports string) func(string) string {
	return func(string) string { return "version = 3\n" + imports + "\n" }
}

// TestCheckNotes: findings that require no change.
func TestCheckNotes(t *testing.T) {
	in := Install{Root: "/srv/tank", Address: "/none", Content: true}
	const images = "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"tank\"\n"
	for _, tc := range []struct {
		name, images string
		want         []string
	}{
		{"both places", "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]\n  snapshotter = \"tank\"\n" +
			"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\n  snapshotter = \"tank\"\n",
			[]string{`CRI uses Tank for the runtime handlers kata alone. ` +
				`The kubelet counts and frees space only for its default snapshotter, "overlayfs".`}},
		{"one place", "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\n  snapshotter = \"tank\"\n",
			[]string{"CRI uses Tank for the runtime handlers kata alone", "containerd 2.2 pulls their " +
				"images with \"overlayfs\""}},
	} {
		wrong, notes := checked(t, in, same, replace(t, images, tc.images))
		if len(wrong) > 0 || len(notes) != len(tc.want)+1 { // the other note is that no daemon answers
			t.Errorf("%s: %q, %q", tc.name, wrong, notes)
		}
		for _, want := range tc.want {
			if !slices.ContainsFunc(notes, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("%s: no finding contains %q: %q", tc.name, want, notes)
			}
		}
	}
}

// TestCheckEmptyPattern: an import pattern that matches no file is only a note, because containerd starts with it.
func TestCheckEmptyPattern(t *testing.T) {
	wrong, notes := checked(t, Install{Root: "/srv/tank", Address: "/none", Content: true},
		replaceImport(`imports = ["tank.toml", "conf.d/*.toml"]`), same)
	if len(wrong) > 0 || !slices.ContainsFunc(notes, func(s string) bool {
		return strings.Contains(s, "conf.d/*.toml, which matches no file")
	}) {
		t.Errorf("%q, %q", wrong, notes)
	}
}
