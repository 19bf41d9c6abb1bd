package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// traced runs a pull under strace and fails the test when its process opens a network socket.
func (k *TankRoot) traced(args ...string) Result {
	t := k.env.t
	t.Helper()
	trace := k.env.Path("trace")
	argv := append([]string{"strace", "-f", "-e", "trace=socket,connect", "-o", trace},
		k.Args("pull", append([]string{"--progress", "none"}, args...)...)...)
	res := k.env.Run(argv...)
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "+++ exited with") {
		t.Fatalf("strace saw no process end: %s", b)
	}
	for line := range strings.Lines(string(b)) {
		if networkSocket.MatchString(line) {
			t.Errorf("%v opens a network socket: %s", args, line)
		}
	}
	return res
}

// TestOfflineMissing: as root and as an ordinary user, alone and through a daemon, --offline answers
// with the same path and without a network socket; without the image, the platform or a whole blob it
// ends with exit 3 and names what is missing.
func TestOfflineMissing(t *testing.T) {
	requireProgram(t, "strace")
	f := AlpineFixture(t, "amd64")
	layer := f.Image.Layers[0].Digest
	losses := []struct {
		name   string
		d      digest.Digest
		damage func(name string) error
	}{
		{"layer's file is gone", layer, os.Remove},
		{"layer's file is shorter", layer, func(name string) error { return os.Truncate(name, 1000) }},
		{"layer's file is longer", layer, func(name string) error {
			return os.Truncate(name, f.Image.Layers[0].Size+1)
		}},
		{"config's file is gone", f.Image.Config.Digest, os.Remove},
		{"manifest's file is empty", f.Image.Manifest.Digest, func(name string) error { return os.Truncate(name, 0) }},
	}
	eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
		for _, daemon := range []bool{false, true} {
			t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
				e := New(t)
				r := e.NewRegistry()
				r.Push(f.Layout, f.Ref, f.Name)
				k := tank(e)
				if daemon {
					k.Serve()
				}
				ref := r.Ref(f.Name)
				root := k.Pull(ref, "--platform", "linux/amd64")
				r.Stop()
				if res := k.traced("--offline", "--platform", "linux/amd64", ref); res.Code != 0 ||
					res.Stdout != root+"\n" {
					t.Errorf("want %s: %s", root, res)
				}
				CheckTree(t, "--offline", k.expect(f.Tree), root)
				missing := func(what string, args ...string) {
					t.Helper()
					res := k.traced(append([]string{"--offline"}, args...)...)
					if res.Code != 3 || res.Stdout != "" || !strings.Contains(res.Stderr, what) ||
						!strings.Contains(res.Stderr, args[len(args)-1]) {
						t.Errorf("want exit 3 and %q on stderr alone: %s", what, res)
					}
				}
				missing("image", r.Ref("library/other:1"))
				missing("linux/arm64", "--platform", "linux/arm64", ref)
				for _, loss := range losses {
					name := blobFile(k.Root, loss.d)
					kept := e.Path("kept")
					e.MustRun("cp", "-a", name, kept)
					_ = os.Chmod(name, 0o600)
					if err := loss.damage(name); err != nil {
						t.Fatal(err)
					}
					missing(loss.d.Encoded()[:12], "--platform", "linux/amd64", ref)
					_ = os.Remove(name)
					e.MustRun("cp", "-a", kept, name)
				}
				if again := k.Pull(ref, "--offline", "--platform", "linux/amd64"); again != root {
					t.Errorf("put right, it gives %s, not %s", again, root)
				}
			})
		}
	})
}

// TestMissingBlobComesBack: a pull fetches just the blob whose file is gone or of another size, and the tree is right.
func TestMissingBlobComesBack(t *testing.T) {
	f := OwnFixture(t)
	for name, damage := range map[string]func(name string) error{
		"gone":    os.Remove,
		"shorter": func(name string) error { return os.Truncate(name, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			k := e.NewTank()
			ref := r.Ref(f.Name)
			k.Pull(ref)
			lost := f.Image.Layers[0].Digest
			_ = os.Chmod(blobFile(k.Root, lost), 0o600)
			if err := damage(blobFile(k.Root, lost)); err != nil {
				t.Fatal(err)
			}
			r.ResetLog()
			CheckTree(t, "pull", f.Tree, k.Pull(ref))
			checkFetched(t, r, lost)
			k.MustRun("check")
		})
	}
}

// checkFetched fails unless exactly these blobs were fetched, in any number of requests, and no byte twice.
func checkFetched(t testing.TB, r *Registry, want ...digest.Digest) {
	t.Helper()
	got, wanted := map[digest.Digest]int{}, map[digest.Digest]bool{}
	type part struct {
		blob  digest.Digest
		bytes string
	}
	parts := map[part]bool{}
	for _, g := range r.BlobGets() {
		got[g.Blob()]++
		if p := (part{g.Blob(), g.Range}); parts[p] {
			t.Errorf("fetched twice: %s %s", p.blob, p.bytes)
		} else {
			parts[p] = true
		}
	}
	for _, d := range want {
		wanted[d] = true
		if got[d] == 0 {
			t.Errorf("not fetched: %s", d)
		}
	}
	for d := range got {
		if !wanted[d] {
			t.Errorf("fetched: %s", d)
		}
	}
}

// TestManifestsOnly: a second pull makes requests for manifests only, whichever platform and user.
func TestManifestsOnly(t *testing.T) {
	f := AlpineFixture(t, "amd64")
	eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
		e := New(t)
		r := e.NewRegistry()
		r.Push(f.Layout, f.Ref, f.Name)
		k := tank(e)
		k.Pull(r.Ref(f.Name), "--platform", "linux/amd64")
		r.ResetLog()
		k.Pull(r.Ref(f.Name), "--platform", "linux/amd64")
		for _, q := range r.Requests() {
			if !strings.Contains(q.Path, "/manifests/") && q.Path != "/v2/" {
				t.Errorf("asked for more than manifests: %s %s", q.Method, q.Path)
			}
		}
		if n := len(r.Requests()); n == 0 || n > 3 {
			t.Errorf("%d requests: a moving tag is followed, with few", n)
		}
	})
}

// movedImages are two images that share their first layer; the second has another above it.
func movedImages(t testing.TB) (first, second BuiltImage, trees [2][]Node) {
	t.Helper()
	var shared []Entry
	for i := range 30 {
		shared = append(shared, file(fmt.Sprintf("shared/%03d", i), 0o644, noise(uint64(i), 20000)))
	}
	layers := [2][][]Entry{
		{shared, {file("top", 0o644, "first\n")}},
		{shared, {file("top", 0o644, "second\n"), file("shared/.wh.000", 0, "")},
			{dir("more", 0o750), file("more/x", 0o600, noise(99, 5000))}},
	}
	var built [2]BuiltImage
	for i := range layers {
		var err error
		if built[i], err = BuildImage(layers[i], helloConfig); err == nil {
			trees[i], err = ExpectedTree(layers[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return built[0], built[1], trees
}

// layerDirs are the directories right below layers/, by inode.
func layerDirs(t testing.TB, k *TankRoot) map[uint64]string {
	t.Helper()
	found := map[uint64]string{}
	for p, ino := range k.LayerInodes(t) {
		if p != "." && !strings.Contains(p, "/") {
			found[ino] = p
		}
	}
	return found
}

// TestMovedTag: after a tag moved only the new layers are fetched, and a daemon's root unpacks only
// those. The image that the tag left stays until gc, which removes exactly that one.
func TestMovedTag(t *testing.T) {
	first, second, trees := movedImages(t)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			k := e.NewTank()
			if daemon {
				k.Serve()
			}
			ref := r.Ref("test/moving:1")
			r.PushBuilt(first, "test/moving:1")
			was := k.Pull(ref)
			before := layerDirs(t, k)
			r.PushBuilt(second, "test/moving:1")
			r.ResetLog()
			now := k.Pull(ref)
			checkFetched(t, r, second.Config.Digest, second.Layers[1].Digest, second.Layers[2].Digest)
			CheckTree(t, "the new image", trees[1], now)
			CheckTree(t, "the old image", trees[0], was)
			if daemon {
				after := layerDirs(t, k)
				for ino, name := range before {
					if after[ino] != name {
						t.Errorf("layers/%s was made again or is gone", name)
					}
				}
				if n := len(after) - len(before); n != 2 {
					t.Errorf("%d new directories in layers/, want 2: %v, then %v", n, before, after)
				}
			}
			if out := k.MustRun("images", "--json"); strings.Count(out, `"untagged":true`) != 1 {
				t.Errorf("images --json does not show the image that the tag left: %s", out)
			}
			CheckLayout(t, k)
			k.MustRun("gc")
			CheckLayout(t, k)
			if _, err := os.Stat(was); err == nil {
				t.Error("gc left the rootfs that the tag has left")
			}
			CheckTree(t, "the new image, after gc", trees[1], now)
			if _, err := os.Stat(blobFile(k.Root, first.Layers[1].Digest)); err == nil {
				t.Error("gc left a blob that only the old image had")
			}
		})
	}
}

// TestRefresh: --refresh fetches every blob again. An intact rootfs stays as it is; a damaged one is made again.
func TestRefresh(t *testing.T) {
	f := OwnFixture(t)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			k := e.NewTank()
			if daemon {
				k.Serve()
			}
			ref := r.Ref(f.Name)
			root := k.Pull(ref)
			inodes := inodesBelow(t, root)
			all := []digest.Digest{f.Image.Config.Digest}
			for _, l := range f.Image.Layers {
				all = append(all, l.Digest)
			}
			r.ResetLog()
			if out := k.PullJSON(ref, "--refresh"); out.Cached || out.Rootfs != root {
				t.Errorf("--refresh: cached=%v at %s, not %s", out.Cached, out.Rootfs, root)
			}
			checkFetched(t, r, all...)
			for ino := range inodesBelow(t, root) {
				if _, ok := inodes[ino]; !ok {
					t.Fatal("--refresh replaced an intact rootfs")
				}
			}
			CheckTree(t, "--refresh", f.Tree, root)
			k.MustRun("check")

			flipByte(t, blobFile(k.Root, f.Image.Layers[0].Digest))
			flipByte(t, filepath.Join(root, "a/b/d"))
			CheckTree(t, "--refresh of what was damaged", f.Tree, k.Pull(ref, "--refresh"))
			k.MustRun("check")
		})
	}
}

// TestRefreshFails: if --refresh fails, the image stays as it was.
func TestRefreshFails(t *testing.T) {
	f := OwnFixture(t)
	layer := f.Image.Layers[0]
	rows := []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request) bool
		code  int
	}{
		{"garbage in a layer", onBlob(layer.Digest, garbage(layer.Size)), 6},
		{"garbage in every blob", onBlob("", garbage(200)), 6},
		{"a layer is gone", onBlob(layer.Digest, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }),
			3},
		{"garbage manifest", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", f.Image.Manifest.MediaType)
			_, _ = w.Write(bytes.Repeat([]byte("{"), int(f.Image.Manifest.Size)))
			return true
		}, 6},
	}
	for _, daemon := range []bool{false, true} {
		for _, row := range rows {
			t.Run(fmt.Sprintf("daemon=%v/%s", daemon, row.name), func(t *testing.T) {
				e := New(t)
				r := e.NewRegistry()
				r.Push(f.Layout, f.Ref, f.Name)
				faulty := NewFaulty(t, r)
				k := e.NewTank()
				if daemon {
					k.Serve()
				}
				ref := faulty.Ref(f.Name)
				root := k.Pull(ref)
				faulty.Answer(row.fault)
				if res := k.Run("pull", "--refresh", "--progress", "none", ref); res.Code != row.code {
					t.Errorf("want exit %d: %s", row.code, res)
				}
				CheckLayout(t, k)
				if again := k.Pull(ref, "--offline"); again != root {
					t.Errorf("after that, offline gives %s, not %s", again, root)
				}
				CheckTree(t, "after a refresh that failed", f.Tree, root)
				k.MustRun("check")
				faulty.Answer(nil)
				CheckTree(t, "after one that did not", f.Tree, k.Pull(ref, "--refresh"))
				k.MustRun("check")
				k.MustRun("rm", ref)
				k.MustRun("gc")
				checkEmpty(t, k) // what the failed one gathered is held by nobody
			})
		}
	}
}

// blobsOf are the names in blobs/sha256, as digests.
func blobsOf(t testing.TB, root string) map[digest.Digest]bool {
	t.Helper()
	found := map[digest.Digest]bool{}
	entries, err := os.ReadDir(filepath.Join(root, "blobs", "sha256"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type() == fs.ModeDir {
			continue
		}
		found[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] = true
	}
	return found
}
