package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// logLine is what the logger writes; with --progress none, stderr of a command that succeeds has nothing else.
var logLine = regexp.MustCompile(`^time="[^"]+" level=\w+ msg=`)

// TestPullOutput: stdout has the path, the digest or the object and nothing else.
func TestPullOutput(t *testing.T) {
	f := OwnFixture(t)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			ref, manifest := r.Ref(f.Name), f.Image.Manifest.Digest.String()
			k := e.NewTank()
			if daemon {
				k.Serve()
			}
			rootfs := filepath.Join(k.Root, "rootfs", "sha256", f.Image.Manifest.Digest.Encoded())
			rows := []struct {
				name, stdout string
				flags        []string
			}{
				{"no rootfs", manifest + "\n", []string{"--no-rootfs"}},
				{"plain progress", rootfs + "\n", []string{"--progress", "plain"}},
				{"auto progress", rootfs + "\n", []string{"--progress", "auto"}},
				{"no progress", rootfs + "\n", []string{"--progress", "none"}},
				{"debug", rootfs + "\n", []string{"--log-level", "debug"}},
				{"no rootfs, again", manifest + "\n", []string{"--no-rootfs"}},
				{"offline", rootfs + "\n", []string{"--offline"}},
				{"refresh", rootfs + "\n", []string{"--refresh", "--no-sync"}},
				{"by digest", rootfs + "\n", []string{"--platform", "linux/amd64"}},
			}
			for _, row := range rows {
				what := ref
				if row.name == "by digest" {
					what = ref[:strings.LastIndexByte(ref, ':')] + "@" + manifest
				}
				res := k.Run("pull", append(row.flags, what)...)
				if res.Code != 0 || res.Stdout != row.stdout {
					t.Errorf("%s: want %q: %s", row.name, row.stdout, res)
				}
				if row.name != "no progress" {
					continue
				}
				for line := range strings.Lines(res.Stderr) {
					if !logLine.MatchString(line) {
						t.Errorf("--progress none: a line that is no log line: %q", line)
					}
				}
			}
			if res := k.Run("pull", ref); !strings.Contains(res.Stderr, "using cached "+ref+" ("+manifest+")") {
				t.Errorf("a hit is not logged as such: %s", res)
			}
			checkPullJSON(t, k, ref, f.Image.Config.Digest, "ref", "digest", "manifest", "rootfs", "config", "cached")
			checkPullJSON(t, k, ref, f.Image.Config.Digest, "ref", "digest", "manifest", "config", "cached",
				"--no-rootfs")
			to := e.Path("to")
			res := k.Run("pull", "--json", "--to", to, ref)
			var out pulled
			if err := json.Unmarshal([]byte(res.Stdout), &out); err != nil || out.Rootfs != to {
				t.Errorf("--json --to: %s", res)
			}
		})
	}
}

// checkPullJSON pulls with --json, and fails unless it prints one object on one line with exactly these fields.
func checkPullJSON(t *testing.T, k *TankRoot, ref string, config digest.Digest, fields ...string) {
	t.Helper()
	flags := []string{"--json"}
	fields = slices.DeleteFunc(slices.Clone(fields), func(f string) bool {
		if strings.HasPrefix(f, "--") {
			flags = append(flags, f)
			return true
		}
		return false
	})
	text := k.MustRun("pull", append(flags, "--progress", "none", ref)...)
	var object map[string]json.RawMessage
	d := json.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&object); err != nil {
		t.Fatalf("%v: printed %q: %v", flags, text, err)
	}
	if rest := text[d.InputOffset():]; rest != "\n" {
		t.Errorf("%v: after the object comes %q", flags, rest)
	}
	got := slices.Sorted(maps.Keys(object))
	if slices.Sort(fields); !slices.Equal(got, fields) {
		t.Errorf("%v: fields %v, want %v", flags, got, fields)
	}
	if sum := digest.FromBytes(object["config"]); sum != config {
		t.Errorf("%v: the config is not as it is: %s", flags, object["config"])
	}
}

// TestNormalizedReference: --json has the normalized reference.
func TestNormalizedReference(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, "library/own:latest")
	hosts := e.Path("hosts")
	if err := os.MkdirAll(filepath.Join(hosts, "docker.io"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(
		"server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.Addr)
	if err := os.WriteFile(filepath.Join(hosts, "docker.io", "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	k := e.NewTank()
	for _, ref := range []string{"own", "own:latest", "library/own", "docker.io/own", "docker.io/library/own:latest"} {
		if out := k.PullJSON(ref, "--hosts-dir", hosts); out.Ref != "docker.io/library/own:latest" {
			t.Errorf("%s is called %s", ref, out.Ref)
		}
	}
	if out := k.PullJSON("own", "--offline"); out.Ref != "docker.io/library/own:latest" {
		t.Errorf("offline, own is called %s", out.Ref)
	}
}

// failure is one way to fail: the command, its exit code, and what the message must name.
type failure struct {
	name  string
	code  int
	fault func(http.ResponseWriter, *http.Request) bool
	args  []string // REF, DIR and ROOT stand for the image, an own directory and the root
	names []string
}

// TestExitCodes: each kind of failure has its code, prints nothing on stdout and names its subject on
// stderr; through a daemon too.
func TestExitCodes(t *testing.T) {
	f := OwnFixture(t)
	layer, config := f.Image.Layers[0], f.Image.Config
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[0] ^= 0xff; return b }
	good := gzipLayer(t, file("a", 0o644, "a\n"))
	images := map[string]BuiltImage{
		"test/nogzip:1": rawImage(t,
			blobLayer{[]byte("this is no gzip stream, and no tar archive, but text"), digest.FromString("x")}),
		"test/notar:1": rawImage(t,
			blobLayer{gzipped(t, bytes.Repeat([]byte("no tar "), 1000)),
				digest.FromBytes(bytes.Repeat([]byte("no tar "), 1000))}),
		"test/wrongdiff:1": rawImage(t, good, blobLayer{gzipLayer(t, file("b", 0o644, "b\n")).blob, good.diffID}),
		"test/cutgzip:1":   rawImage(t, blobLayer{good.blob[:len(good.blob)-12], good.diffID}),
		"test/badcrc:1": rawImage(t,
			blobLayer{append(bytes.Clone(good.blob[:len(good.blob)-8]), flip(good.blob[len(good.blob)-8:])...),
				good.diffID}),
	}
	lying := func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Docker-Content-Digest", digest.FromString("a lie").String())
			w.Header().Set("Content-Type", f.Image.Manifest.MediaType)
			b, _ := os.ReadFile(blobFile(f.Layout, f.Image.Manifest.Digest))
			_, _ = w.Write(b)
			return true
		}
		return false
	}
	cutAll := func(w http.ResponseWriter, r *http.Request) bool { cut(w, r); return true }
	short := func(d digest.Digest) string { return d.Encoded()[:12] }
	rows := []failure{
		{"unknown flag", 2, nil, []string{"pull", "--no-such-flag", "REF"}, []string{"--no-such-flag"}},
		{"no reference", 2, nil, []string{"pull"}, nil},
		{"two references", 2, nil, []string{"pull", "REF", "REF"}, nil},
		{"bad reference", 2, nil, []string{"pull", "127.0.0.1/UPPER:1"}, []string{"127.0.0.1/UPPER:1"}},
		{"bad digest", 2, nil, []string{"pull", "alpine@sha256:12"}, []string{"alpine@sha256:12"}},
		{"bad platform", 2, nil, []string{"pull", "--platform", "a/b/c/d", "REF"}, []string{"a/b/c/d"}},
		{"bad progress", 2, nil, []string{"pull", "--progress", "loud", "REF"}, []string{"loud"}},
		{"bad log level", 2, nil, []string{"images", "--log-level", "loud"}, []string{"loud"}},
		{"offline and refresh", 2, nil, []string{"pull", "--offline", "--refresh", "REF"},
			[]string{"--offline", "--refresh"}},
		{"to and no-rootfs", 2, nil, []string{"pull", "--to", "DIR", "--no-rootfs", "REF"},
			[]string{"--to", "--no-rootfs"}},
		{"unknown command", 2, nil, []string{"fetch", "REF"}, []string{"fetch"}},
		{"no such tag", 3, nil, []string{"pull", "REF-none"}, []string{"REF-none"}},
		{"no such repository", 3, nil, []string{"pull", "HOST/none:1"}, []string{"HOST/none:1"}},
		{"offline", 3, nil, []string{"pull", "--offline", "HOST/none:1"}, []string{"HOST/none:1", "--offline"}},
		{"rm of nothing", 3, nil, []string{"rm", "HOST/none:1"}, []string{"HOST/none:1"}},
		{"inspect of nothing", 3, nil, []string{"inspect", "HOST/none:1"}, []string{"HOST/none:1"}},
		{"blob that is not there", 3,
			onBlob(layer.Digest, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }),
			[]string{"pull", "REF"}, []string{"REF", short(layer.Digest)}},
		{"401", 4, status(401), []string{"pull", "REF"}, []string{"REF"}},
		{"403", 4, status(403), []string{"pull", "REF"}, []string{"REF"}},
		{"403 for a blob", 4, onBlob(layer.Digest, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }),
			[]string{"pull", "REF"}, []string{"REF", short(layer.Digest)}},
		{"refused", 5, nil, []string{"pull", "127.0.0.1:1/test/x:1"}, []string{"127.0.0.1:1/test/x:1"}},
		{"cut", 5, cutAll, []string{"pull", "REF"}, []string{"REF"}},
		{"cut blob", 5, onBlob(layer.Digest, cut), []string{"pull", "REF"}, []string{"REF", short(layer.Digest)}},
		{"lying digest header", 6, lying, []string{"pull", "REF"}, []string{"REF"}},
		{"other bytes in a layer", 6, onBlob(layer.Digest, garbage(layer.Size)), []string{"pull", "REF"},
			[]string{"REF", short(layer.Digest)}},
		{"other bytes in the config", 6, onBlob(config.Digest, garbage(config.Size)), []string{"pull", "REF"},
			[]string{"REF", short(config.Digest)}},
		{"no gzip", 6, nil, []string{"pull", "HOST/nogzip:1"}, []string{"HOST/nogzip:1", "LAYER"}},
		{"no tar", 6, nil, []string{"pull", "HOST/notar:1"}, []string{"HOST/notar:1", "LAYER"}},
		{"gzip that is cut", 6, nil, []string{"pull", "HOST/cutgzip:1"}, []string{"HOST/cutgzip:1", "LAYER"}},
		{"gzip with a wrong checksum", 6, nil, []string{"pull", "HOST/badcrc:1"}, []string{"HOST/badcrc:1", "LAYER"}},
		{"wrong diff ID", 6, nil, []string{"pull", "HOST/wrongdiff:1"}, []string{"HOST/wrongdiff:1", "LAYER"}},
	}
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			for name, img := range images {
				r.PushBuilt(img, name)
			}
			faulty := NewFaulty(t, r)
			k := e.NewTank()
			if daemon {
				k.Serve()
			}
			for _, row := range rows {
				if row.code == 5 && daemon && row.name != "refused" {
					continue // retries take their time, and are the same
				}
				t.Run(row.name, func(t *testing.T) {
					e.Use(t)
					runFailure(t, k, faulty, f, images, row)
				})
			}
		})
	}
}

// bareClass is an error's class without the error.
var bareClass = regexp.MustCompile(
	`^\s*(unavailable|not found|unauthenticated|permission denied|data loss|failed precondition|` +
		`invalid argument|unknown)\s*$`)

// runFailure runs one row on the root.
func runFailure(t *testing.T, k *TankRoot, faulty *Faulty, f Fixture, images map[string]BuiltImage, row failure) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "to")
	real := func(s string) string {
		if s == "LAYER" {
			img := images["test/"+strings.TrimPrefix(row.names[0], "HOST/")]
			return img.Layers[len(img.Layers)-1].Digest.Encoded()[:12]
		}
		return strings.NewReplacer("REF", faulty.Ref(f.Name), "HOST", faulty.Addr+"/test", "DIR", dir).Replace(s)
	}
	var args []string
	for _, a := range row.args[1:] {
		args = append(args, real(a))
	}
	k.Run("rm", real("REF")) // what rows before this one left
	k.Run("gc")
	faulty.Answer(row.fault)
	res := k.Run(row.args[0], args...)
	faulty.Answer(nil)
	if res.Code != row.code {
		t.Errorf("want exit %d: %s", row.code, res)
	}
	if res.Stdout != "" {
		t.Errorf("something on stdout: %s", res)
	}
	for line := range strings.Lines(res.Stderr) {
		if bareClass.MatchString(line) {
			t.Errorf("a line without information: %q: %s", line, res)
		}
	}
	for _, name := range row.names {
		if !strings.Contains(res.Stderr, real(name)) {
			t.Errorf("%s is not named: %s", real(name), res)
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("%s was made", dir)
	}
}

// TestWhatToDo: after its error a command advises what to do, on a line of its own.
func TestWhatToDo(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	faulty := NewFaulty(t, r)
	k := e.NewTank()
	layer := f.Image.Layers[0]
	for _, row := range []failure{
		{"offline", 3, nil, []string{"pull", "--offline", "HOST/none:1"}, nil},
		{"no such tag", 3, nil, []string{"pull", "HOST/none:1"}, nil},
		{"inspect of nothing", 3, nil, []string{"inspect", "HOST/none:1"}, nil},
		{"denied", 4, status(401), []string{"pull", "REF"}, nil},
		{"network", 5, nil, []string{"pull", "127.0.0.1:1/test/x:1"}, nil},
		{"other bytes", 6, onBlob(layer.Digest, garbage(layer.Size)), []string{"pull", "REF"}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			e.Use(t)
			var args []string
			for _, a := range row.args[1:] {
				args = append(args,
					strings.NewReplacer("REF", faulty.Ref(f.Name), "HOST", faulty.Addr+"/test").Replace(a))
			}
			faulty.Answer(row.fault)
			res := k.Run(row.args[0], args...)
			faulty.Answer(nil)
			_, after, _ := strings.Cut(res.Stderr, "tank-snapshotter: ")
			if lines := strings.Split(strings.TrimSpace(after), "\n"); res.Code != row.code || len(lines) < 2 {
				t.Errorf("want exit %d and a line with advice: %s", row.code, res)
			}
		})
	}
}

// TestBadLayerBesideOthers: a bad layer ends the pull at once with its own exit code and message,
// whatever is being downloaded then.
func TestBadLayerBesideOthers(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	bad := blobLayer{gzipped(t, bytes.Repeat([]byte("no tar "), 1000)),
		digest.FromBytes(bytes.Repeat([]byte("no tar "), 1000))}
	slow := gzipLayer(t, file("slow", 0o644, random(1, 2<<20)))
	large := gzipLayer(t, file("large", 0o644, random(2, 13<<20)))
	img := rawImage(t, slow, large, bad)
	r.PushBuilt(img, "test/bad:1")
	for i := range 12 {
		k := e.NewTank()
		r.SetRate(int64(i%4) << 20) // the failure meets the others at other moments
		start := time.Now()
		res := k.Run("pull", "--progress", "none", r.Ref("test/bad:1"))
		if took := time.Since(start); res.Code != 6 ||
			!strings.Contains(res.Stderr, img.Layers[2].Digest.Encoded()[:12]) || took > 2*time.Second {
			t.Errorf("%d, after %v: want exit 6 and %s named: %s", i, took, img.Layers[2].Digest, res)
		}
		r.SetRate(0)
		k.MustRun("check")
	}
}

// TestOtherFailures has the exit codes of failures of this machine.
func TestOtherFailures(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	ref := r.Ref(f.Name)
	expect := func(res Result, code int, names ...string) {
		t.Helper()
		if res.Code != code || res.Stdout != "" {
			t.Errorf("want exit %d and nothing on stdout: %s", code, res)
		}
		for _, n := range names {
			if !strings.Contains(res.Stderr, n) {
				t.Errorf("%s is not named: %s", n, res)
			}
		}
	}
	k := e.NewTank()
	k.Serve()
	expect(e.Run(k.bin, "images", "--root", e.Path("other"), "--address", k.Socket), 2, e.Path("other"), k.Root)
	expect(e.Run(k.bin, "images", "--address", e.Path("nobody.sock")), 1, e.Path("nobody.sock"))
	name := e.Path("file")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	expect(e.Run(k.bin, "pull", "--root", name, ref), 1, name)
	expect(e.Run(k.bin, "pull", "--root", name+"/below", ref), 1, name)

	u := e.NewUserTank()
	u.MustRun("pull", "--no-rootfs", ref)
	expect(e.Run(k.bin, "pull", "--root", u.Root, ref), 1, u.Root) // root refuses a user's
	u.Root, name = e.Path("not-mine"), u.Root
	expect(u.Run("pull", ref), 1, u.Root) // and a user may not make one here
	u.Root = name
}

// TestListings: what images, inspect, rm, gc and check print, in a private root and through a daemon.
func TestListings(t *testing.T) {
	f := OwnFixture(t)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			ref := r.Ref(f.Name)
			k := e.NewTank()
			if daemon {
				k.Serve()
			} else {
				k.Make()
			}
			if out := k.MustRun("images", "--json"); out != "[]\n" {
				t.Errorf("images --json of an empty root: %q", out)
			}
			if out := k.MustRun("images"); strings.Contains(out, "127.0.0.1") {
				t.Errorf("images of an empty root: %q", out)
			}
			if out := k.MustRun("check", "--json"); out != "[]\n" {
				t.Errorf("check --json of an empty root: %q", out)
			}
			rootfs := k.Pull(ref)
			var list []struct {
				Ref, Digest, Manifest, Platform, Rootfs string
				Size                                    int64
				Created                                 string
			}
			if err := json.Unmarshal([]byte(k.MustRun("images", "--json")), &list); err != nil || len(list) != 1 {
				t.Fatalf("images --json: %v, %v", list, err)
			}
			size, want := f.Image.Manifest.Size+f.Image.Config.Size, f.Image.Manifest.Digest.String()
			for _, l := range f.Image.Layers {
				size += l.Size
			}
			i := list[0]
			if i.Ref != ref || i.Digest != want || i.Manifest != want || i.Platform != "linux/amd64" ||
				i.Rootfs != rootfs || i.Size != size || i.Created == "" {
				t.Errorf("images --json: %+v; want %s %s linux/amd64 %s %d", i, ref, want, rootfs, size)
			}
			var record struct {
				Ref       string
				Platforms []struct {
					Platform, Rootfs string
					DiffIDs          []digest.Digest
					Layers           []any
				}
			}
			text := k.MustRun("inspect", ref)
			if err := json.Unmarshal([]byte(text), &record); err != nil || record.Ref != ref ||
				len(record.Platforms) != 1 ||
				record.Platforms[0].Rootfs != rootfs || !slices.Equal(record.Platforms[0].DiffIDs, f.Image.DiffIDs) {
				t.Errorf("inspect: %s (%v)", text, err)
			}
			if out := k.MustRun("check", "--json"); out != "[]\n" {
				t.Errorf("check --json: %q", out)
			}
			checkFaultJSON(t, k, filepath.Join(rootfs, "a/b/d"))
			if res := k.Run("rm", r.Ref("none:1"), ref); res.Code != 3 || res.Stdout != "" {
				t.Errorf("rm of one that is there and one that is not: %s", res)
			}
			if out := k.MustRun("images", "--json"); out != "[]\n" {
				t.Errorf("images --json after rm: %q", out)
			}
			if out := k.MustRun("gc"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "1 rootfs") {
				t.Errorf("gc: %q", out)
			}
			checkEmpty(t, k)
		})
	}
}

// checkFaultJSON damages a file, fails unless check --json names it, and restores it.
func checkFaultJSON(t *testing.T, k *TankRoot, name string) {
	t.Helper()
	flipByte(t, name)
	res := k.Run("check", "--json")
	var faults []struct{ What, Name, Message string }
	if err := json.Unmarshal([]byte(res.Stdout), &faults); err != nil || res.Code != 6 || len(faults) != 1 {
		t.Errorf("check --json with one fault: %v: %s", err, res)
	}
	for _, f := range faults {
		if f.What != "rootfs" || !strings.Contains(f.Message, "a/b/d") {
			t.Errorf("check --json does not name the file: %+v", f)
		}
	}
	if res := k.Run("check"); res.Code != 6 || strings.Count(res.Stdout, "\n") != 2 ||
		!strings.Contains(res.Stdout, "a/b/d") || !strings.Contains(res.Stdout, "\n  what mends it: ") {
		t.Errorf("check with one fault: %s", res)
	}
	flipByte(t, name)
}

// TestSmallCommands: version, completion and the root by $TANK_CACHE and --cache.
func TestSmallCommands(t *testing.T) {
	e := New(t)
	k := e.NewTank()
	if out := e.MustRun(k.bin, "version"); strings.Count(out, "\n") != 1 {
		t.Errorf("version: %q", out)
	}
	if out := e.MustRun(k.bin, "completion", "bash"); !strings.Contains(out, "tank-snapshotter") {
		t.Errorf("completion bash: %q", clip(out))
	}
	e.Run("env", "TANK_CACHE="+e.Path("from-env"), k.bin, "pull", "127.0.0.1:1/none:1") // which makes the root
	e.Run(k.bin, "pull", "--cache", e.Path("from-flag"), "127.0.0.1:1/none:1")
	for _, dir := range []string{"from-env", "from-flag"} {
		if st, err := os.Stat(e.Path(dir)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("root %s: %v, %v", dir, st, err)
		}
	}
	if res := e.Run("env", "TANK_CACHE="+e.Path("from-env"), k.bin, "check", "--rebuild"); res.Code != 0 {
		t.Errorf("check --rebuild: %s", res)
	}
}
