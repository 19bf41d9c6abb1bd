package integration

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// asUser is a script that runs Tank's binary as an ordinary user without capabilities. The shell and setpriv replace
// themselves with it, so that signals and /proc of the started process are Tank's.
const asUser = `#!/bin/sh
HOME=%[1]s exec setpriv --reuid=%[2]d --regid=%[2]d --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs --pdeathsig=KILL -- %[3]s "$@"
`

// NewUserTank is NewTank for an ordinary user: the root is in a directory that belongs to the user, the only one that
// the user can write to.
func (e *Env) NewUserTank() *TankRoot {
	e.t.Helper()
	requireProgram(e.t, "setpriv")
	if err := os.Chmod(e.Dir, 0o711); err != nil {
		e.t.Fatal(err)
	}
	k := e.NewTank()
	home := e.Path("u" + randomHex(2))
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chown(home, ordinary, ordinary)); err != nil {
		e.t.Fatal(err)
	}
	program := e.Path("tank-snapshotter") // a copy, because the user may be unable to reach the binary
	if _, err := os.Stat(program); err != nil {
		if b, err := os.ReadFile(k.bin); err != nil || os.WriteFile(program, b, 0o755) != nil {
			e.t.Fatalf("copy of %s: %v", k.bin, err)
		}
	}
	k.bin = home + ".sh"
	if err := os.WriteFile(k.bin, fmt.Appendf(nil, asUser, home, ordinary, program), 0o755); err != nil {
		e.t.Fatal(err)
	}
	k.Root, k.Socket = filepath.Join(home, "root"), filepath.Join(home, "tank.sock")
	return k
}

// user reports whether the root belongs to an ordinary user.
func (k *TankRoot) user() bool { return strings.HasSuffix(k.bin, ".sh") }

// expect returns a listed tree as it must look in this root; docs/rootless.md has the rules for an ordinary user.
func (k *TankRoot) expect(nodes []Node) []Node {
	if !k.user() {
		return nodes
	}
	return asOrdinary(nodes, ordinary)
}

// asOrdinary returns a listed tree as an ordinary user with that id unpacks it.
func asOrdinary(nodes []Node, id int) []Node {
	var out []Node
	for _, n := range nodes {
		if n.Type == "char" || n.Type == "block" {
			continue
		}
		mode, err := strconv.ParseUint(n.Mode, 8, 32)
		if err != nil {
			panic(err)
		}
		n.UID, n.GID, n.Mode = id, id, fmt.Sprintf("%04o", mode&^unix.S_ISUID)
		kept := map[string]string{}
		for name, value := range n.XAttrs {
			if name != "security.capability" && !strings.HasPrefix(name, "trusted.") {
				kept[name] = value
			}
		}
		if n.XAttrs = kept; len(kept) == 0 {
			n.XAttrs = nil
		}
		out = append(out, n)
	}
	return out
}

// eachUser runs test with a root directory of the user root and with one of an ordinary user.
func eachUser(t *testing.T, test func(t *testing.T, tank func(e *Env) *TankRoot)) {
	t.Run("root", func(t *testing.T) { test(t, (*Env).NewTank) })
	t.Run("user", func(t *testing.T) { test(t, (*Env).NewUserTank) })
}

// pulled is what `pull --json` prints.
type pulled struct {
	Ref, Digest, Manifest, Rootfs string
	Config                        json.RawMessage
	Cached                        bool
}

// PullJSON is Pull with --json.
func (k *TankRoot) PullJSON(ref string, flags ...string) pulled {
	k.env.t.Helper()
	text := k.MustRun("pull", append(flags, "--json", "--progress", "none", ref)...)
	var out pulled
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		k.env.t.Fatalf("pull --json printed %q: %v", text, err)
	}
	return out
}

// AlpineFixture is one platform of the shared alpine:3.20. The model computes its tree from the layer's tar. For
// linux/amd64 there is a listing as well, with which the model has to agree.
func AlpineFixture(t testing.TB, arch string) Fixture {
	t.Helper()
	f := sharedFixture(t, "alpine:3.20", "alpine-3.20-amd64.tree.jsonl")
	img, err := readPlatform(f.Layout, f.Ref, arch)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := readLayer(blobFile(f.Layout, img.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := ExpectedTree([][]Entry{layer})
	if err != nil {
		t.Fatal(err)
	}
	if arch == "amd64" {
		if diffs := CompareTrees(f.Tree, tree, 20); len(diffs) > 0 {
			t.Fatalf("the model does not agree with the listing:\n%s", strings.Join(diffs, "\n"))
		}
	}
	f.Tree, f.Image = tree, img
	return f
}

// readPlatform is ReadImage for one architecture of an index.
func readPlatform(layout, ref, arch string) (Image, error) {
	d, err := findRef(layout, ref)
	if err != nil {
		return Image{}, err
	}
	var index ocispec.Index
	if err := readJSON(layout, d.Digest, &index); err != nil {
		return Image{}, err
	}
	for _, m := range index.Manifests {
		if m.Platform == nil || m.Platform.Architecture != arch {
			continue
		}
		var manifest ocispec.Manifest
		var config ocispec.Image
		if err := readJSON(layout, m.Digest, &manifest); err != nil {
			return Image{}, err
		}
		if err := readJSON(layout, manifest.Config.Digest, &config); err != nil {
			return Image{}, err
		}
		return Image{Manifest: m, Config: manifest.Config, Layers: manifest.Layers, DiffIDs: config.RootFS.DiffIDs}, nil
	}
	return Image{}, fmt.Errorf("layout %s: image %s: no %s", layout, ref, arch)
}

// readLayer reads a gzip layer's entries, without the root directory's own.
func readLayer(name string) ([]Entry, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if path.Clean("/"+h.Name) != "/" {
			entries = append(entries, Entry{Header: *h, Data: data})
		}
	}
}

// TestPullTrees: every shared image and the tests' own unpack to the listed tree, as root and as an ordinary user,
// with a first and a second pull.
func TestPullTrees(t *testing.T) {
	rows := []struct {
		name     string
		fixture  func(testing.TB) Fixture
		platform string
	}{
		{"own", OwnFixture, ""},
		{"corner", CornerFixture, ""},
		{"debian-python", DebianFixture, ""},
		{"debian-python-zstd", func(t testing.TB) Fixture {
			return sharedFixture(t, "debian-python:12-zstd", "debian-python-12.tree.jsonl")
		}, ""},
		{"alpine-amd64", func(t testing.TB) Fixture { return AlpineFixture(t, "amd64") }, "linux/amd64"},
		{"alpine-arm64", func(t testing.TB) Fixture { return AlpineFixture(t, "arm64") }, "linux/arm64"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			f := row.fixture(t)
			eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
				e := New(t)
				r := e.NewRegistry()
				r.Push(f.Layout, f.Ref, f.Name)
				k := tank(e)
				var flags []string
				if row.platform != "" {
					flags = []string{"--platform", row.platform}
				}
				first := k.PullJSON(r.Ref(f.Name), flags...)
				if first.Cached || first.Manifest != f.Image.Manifest.Digest.String() {
					t.Errorf("pulled cached=%v manifest %s, not %s", first.Cached, first.Manifest,
						f.Image.Manifest.Digest)
				}
				if config := digest.FromBytes(first.Config); config != f.Image.Config.Digest {
					t.Errorf("pull --json changed the config: digest %s, not %s", config, f.Image.Config.Digest)
				}
				CheckTree(t, "pull", k.expect(f.Tree), first.Rootfs)
				again := k.PullJSON(r.Ref(f.Name), flags...)
				if !again.Cached || again.Rootfs != first.Rootfs {
					t.Errorf("second pull: cached=%v at %s, first at %s", again.Cached, again.Rootfs, first.Rootfs)
				}
				CheckTree(t, "pull again", k.expect(f.Tree), again.Rootfs)
				k.MustRun("check")
			})
		})
	}
}

// TestPlatforms: one root can have both platforms of an index, each with its own tree.
func TestPlatforms(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	amd64, arm64 := AlpineFixture(t, "amd64"), AlpineFixture(t, "arm64")
	r.Push(amd64.Layout, amd64.Ref, amd64.Name)
	k := e.NewTank()
	ref := r.Ref(amd64.Name)
	a := k.Pull(ref, "--platform", "linux/amd64")
	b := k.Pull(ref, "--platform", "linux/arm64")
	CheckTree(t, "linux/amd64", amd64.Tree, a)
	CheckTree(t, "linux/arm64", arm64.Tree, b)
	r.Stop()
	if again := k.Pull(ref, "--offline", "--platform", "linux/amd64"); again != a {
		t.Errorf("offline, linux/amd64 is %s, not %s", again, a)
	}
	if again := k.Pull(ref, "--offline", "--platform", "linux/arm64"); again != b {
		t.Errorf("offline, linux/arm64 is %s, not %s", again, b)
	}
}

// TestPullTo: --to writes the same tree to a directory that is missing or empty, and shares no inode with the root. It
// changes no directory that is not empty.
func TestPullTo(t *testing.T) {
	rows := []struct {
		name string
		make func(dir string) error
		code int
	}{
		{"missing", func(string) error { return nil }, 0},
		{"empty", func(dir string) error { return os.Mkdir(dir, 0o755) }, 0},
		{"not-empty", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "mine"), []byte("mine\n"), 0o644))
		}, 2},
		{"a-file", func(dir string) error { return os.WriteFile(dir, []byte("mine\n"), 0o644) }, 2},
	}
	f := OwnFixture(t)
	eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
		for _, daemon := range []bool{false, true} {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			k := tank(e)
			if daemon {
				k.Serve()
			}
			for _, row := range rows {
				t.Run(fmt.Sprintf("daemon=%v/%s", daemon, row.name), func(t *testing.T) {
					e.Use(t)
					dir := filepath.Join(filepath.Dir(k.Root), "to-"+row.name)
					err := row.make(dir)
					if _, statErr := os.Stat(dir); statErr == nil && k.user() {
						err = errors.Join(err, os.Chown(dir, ordinary, ordinary))
					}
					if err != nil {
						t.Fatal(err)
					}
					res := k.Run("pull", "--to", dir, "--progress", "none", r.Ref(f.Name))
					if res.Code != row.code {
						t.Fatalf("want exit %d: %s", row.code, res)
					}
					if row.code != 0 {
						if res.Stdout != "" || !strings.Contains(res.Stderr, dir) {
							t.Errorf("stdout is not empty, or stderr does not name DIR: %s", res)
						}
						entries, _ := os.ReadDir(dir)
						if len(entries) > 1 {
							t.Errorf("DIR has new entries: %v", entries)
						}
						return
					}
					if res.Stdout != dir+"\n" {
						t.Errorf("printed %q, not %q", res.Stdout, dir)
					}
					CheckTree(t, "--to", k.expect(f.Tree), dir)
					checkNothingShared(t, dir, k.Root)
					if err := os.WriteFile(filepath.Join(dir, "a/b/d"), []byte("changed\n"), 0o644); err != nil {
						t.Fatal(err)
					}
					CheckTree(t, "the tree in the root, after a change in DIR", k.expect(f.Tree), k.Pull(r.Ref(f.Name)))
				})
			}
			if daemon {
				k.Daemon().Stop()
			}
		}
	})
}

// checkNothingShared fails the test if a file below a is also below b.
func checkNothingShared(t testing.TB, a, b string) {
	t.Helper()
	theirs := inodesBelow(t, b)
	for ino, p := range inodesBelow(t, a) {
		if q, ok := theirs[ino]; ok {
			t.Errorf("%s is the same inode as %s", p, q)
		}
	}
}

func inodesBelow(t testing.TB, root string) map[[2]uint64]string {
	t.Helper()
	found := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		found[[2]uint64{st.Dev, st.Ino}] = p
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
