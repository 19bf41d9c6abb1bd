package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestDocs runs the commands that a document gives to a new user, line by line, on a simulated fresh node:
// each command has to succeed, and to print what the document shows (… stands for anything). A file's
// content in a block that begins with its name is written there.
func TestDocs(t *testing.T) {
	t.Run("containerd.md", func(t *testing.T) { followDoc(t, readSteps(t, "containerd.md", "")) })
	if os.Getenv(kubeletVariable) == "" {
		return // it takes minutes to build: make kubelet
	}
	t.Run("kubernetes.md", func(t *testing.T) {
		followDoc(t, append(readSteps(t, "containerd.md", "## Pull and run"), readSteps(t, "kubernetes.md", "")...))
	})
}

// kubeletVariable names a kubelet to run.
const kubeletVariable = "TANK_KUBELET"

// docExtra is put at the end of the files that documents have a user write: what only a test machine needs.
func docExtra(name, dir string) string {
	if name != "/etc/containerd/config.toml" {
		return ""
	}
	return fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[1]q]
    conf_dir = %[1]q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/library/pause:1"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
`, dir+"/cni")
}

func followDoc(t *testing.T, steps []step) {
	requireProgram(t, "unshare")
	e := New(t)
	r := e.NewRegistry()
	pushDocImages(t, e, r)
	repository := filepath.Dir(moduleDir())
	for _, d := range []string{"node", "script"} {
		if err := os.Mkdir(e.Path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(e.Path("script", "run"), []byte(docScript(e, r, repository, steps)), 0o755); err != nil {
		t.Fatal(err)
	}
	p := e.Start("node", "unshare", "--mount", "--pid", "--fork", "--kill-child",
		filepath.Join(moduleDir(), "testdata/docs/node.sh"), e.Path("node"), repository, e.Bin, e.Path("script", "run"))
	if _, err := p.Wait(4 * time.Minute); err != nil {
		t.Error(err)
	}
	p.Stop()
	out, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	compareSteps(t, steps, string(out))
}

// pushDocImages makes the images that the documents name, and has docker.io stand for the tests' registry.
func pushDocImages(t *testing.T, e *Env, r *Registry) {
	t.Helper()
	hello, err := testProgram()
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]BuiltImage{}
	for _, ref := range []string{"alpine:3.20", "debian:12"} {
		base := []Entry{dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o755), dir("etc", 0o755), dir("bin", 0o755),
			file("bin/echo", 0o755, string(hello)), file("bin/sleep", 0o755, string(hello))}
		layers := [][]Entry{base, {file("etc/name", 0o644, ref+"\n")}}
		b, err := BuildImage(layers, ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"echo", ref}})
		if err != nil {
			t.Fatal(err)
		}
		images[ref] = b
	}
	layout := e.Path("docimages")
	if err := WriteLayout(layout, images); err != nil {
		t.Fatal(err)
	}
	for ref := range images {
		r.Push(layout, ref, "library/"+ref)
	}
	own, err := ownLayout()
	if err != nil {
		t.Fatal(err)
	}
	r.Push(own, "pause:1", "library/pause:1")
}

// step is a command that is run, or a file that is written.
type step struct {
	where   string // document and line
	command string
	output  []string // lines that have to come, in this order, each with … for anything
	file    string
	content string
}

var fence = regexp.MustCompile("^```([a-z]*)$")

// readSteps returns the steps in a document, up to the line until if that is not empty: commands after "# " in
// blocks of console, and files in blocks of toml whose first line is "# /absolute/name".
func readSteps(t *testing.T, doc, until string) (steps []step) {
	t.Helper()
	f, err := os.Open(filepath.Join(moduleDir(), "..", "docs", doc))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kind, n := "", 0
	for s := bufio.NewScanner(f); s.Scan() && (until == "" || s.Text() != until); {
		n++
		line, where := s.Text(), fmt.Sprintf("%s:%d", doc, n)
		if m := fence.FindStringSubmatch(line); m != nil {
			if kind = m[1]; kind == "toml" {
				steps = append(steps, step{where: where})
			}
			continue
		}
		last := len(steps) - 1
		command, isCommand := strings.CutPrefix(line, "# ")
		switch {
		case kind == "console" && isCommand:
			steps = append(steps, step{where: where, command: command})
		case kind == "console":
			steps[last].output = append(steps[last].output, line)
		case kind == "toml" && steps[last].file == "" && !strings.HasPrefix(command, "/"):
			steps, kind = steps[:last], "" // an example, not a file
		case kind == "toml" && steps[last].file == "":
			steps[last].file = command
		case kind == "toml":
			steps[last].content += line + "\n"
		}
	}
	if len(steps) < 8 {
		t.Fatalf("%s: only %d steps were found", doc, len(steps))
	}
	return steps
}

// docScript returns the script that runs on the node. It prints the number of each step before the step and its exit
// code after it, both after stepMark.
func docScript(e *Env, r *Registry, repository string, steps []step) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", "+
		"\"resolve\", \"push\"]\n", r.Addr)
	line("exec 2>&1\ncd %s", repository)
	line("mkdir -p /opt/shims /etc/containerd/certs.d/docker.io")
	line("cat >/etc/containerd/certs.d/docker.io/hosts.toml <<'END'\n%sEND", hosts)
	line("cp %s /opt/shims/systemctl", filepath.Join(moduleDir(), "testdata/docs/systemctl"))
	// ctr reads no configuration, so it needs a flag for the mirrors.
	line("cat >/opt/shims/ctr <<'END'\n#!/bin/bash\nif [ \"${1-} ${2-}\" = 'images pull' ]; then\n"+
		"\texec %[1]s/ctr images pull --hosts-dir /etc/containerd/certs.d \"${@:3}\" 2>/dev/null\nfi\nexec "+
		"%[1]s/ctr \"$@\" 2> >(grep -v 'cgroup v1' >&2)\nEND", e.Bin)
	line("chmod +x /opt/shims/*; export PATH=/usr/local/bin:/opt/shims:%s:$PATH", e.Bin)
	line("export KUBELET=%s", os.Getenv(kubeletVariable))
	line("unset XDG_CACHE_HOME XDG_CONFIG_HOME; export GOFLAGS=-buildvcs=false")
	for i, s := range steps {
		line("printf '\\n%s %d\\n'", stepMark, i)
		if s.file != "" {
			line("cat >%s <<'END_OF_FILE'\n%s%sEND_OF_FILE", s.file, s.content, docExtra(s.file, e.Dir))
		} else {
			line("%s", s.command)
		}
		line("status=$?; printf '\\n%s %d exit %%d\\n' $status; [ $status = 0 ] || { tail -n 30 /run/*.log; exit 1; "+
			"}", stepMark, i)
	}
	line("systemctl stop kubelet; systemctl stop containerd; systemctl stop tank-snapshotter; exit 0")
	return b.String()
}

const stepMark = "@@step"

// compareSteps looks for each step's exit code and output in what the script printed.
func compareSteps(t *testing.T, steps []step, out string) {
	t.Helper()
	for i, s := range steps {
		what := s.where + ": " + s.command + s.file
		_, rest, began := strings.Cut(out, fmt.Sprintf("\n%s %d\n", stepMark, i))
		printed, _, ended := strings.Cut(rest, fmt.Sprintf("\n%s %d exit 0\n", stepMark, i))
		if !began || !ended {
			t.Fatalf("%s did not succeed:\n%s", what, clip(rest))
		}
		if missing := missingLine(s.output, printed); missing != "" {
			t.Errorf("%s: printed no line %q where the document shows it:\n%s", what, missing, printed)
		}
	}
}

// missingLine returns the first of the expected lines that does not come, in order, in what was printed.
func missingLine(expected []string, printed string) string {
	lines := strings.Split(printed, "\n")
	for _, want := range expected {
		if strings.TrimSpace(want) == "…" || strings.TrimSpace(want) == "" {
			continue
		}
		parts := strings.Split(want, "…")
		for i := range parts {
			words := strings.Fields(parts[i])
			for k := range words {
				words[k] = regexp.QuoteMeta(words[k])
			}
			parts[i] = strings.Join(words, `\s+`)
		}
		pattern := regexp.MustCompile(`^\s*` + strings.Join(parts, `.*`) + `\s*$`)
		found := false
		for !found && len(lines) > 0 {
			found, lines = pattern.MatchString(lines[0]), lines[1:]
		}
		if !found {
			return want
		}
	}
	return ""
}
