package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClaims: both doors refuse a config that claims the diff ID of another layer for a blob:
// with or without that layer in the root, with or without the blob there from an image with
// correct claims, and through whichever door they came. Afterwards correct pulls give the right trees.
// TestFalseDiffID has the other ways to install.
func TestClaims(t *testing.T) {
	base := gzipLayer(t, dir("etc", 0o755), file("etc/base", 0o644, "base\n"))
	claimed := gzipLayer(t, file("etc/motd", 0o644, "claimed\n"))
	evil := gzipLayer(t, file("etc/motd", 0o644, "evil\n"))
	liars := map[string]BuiltImage{
		"alone": rawImage(t, blobLayer{evil.blob, claimed.diffID}),
		"above": rawImage(t, base, blobLayer{evil.blob, claimed.diffID}),
		"below": rawImage(t, blobLayer{evil.blob, claimed.diffID}, base),
		// two false claims that together name only layers that exist
		"swapped": rawImage(t, base, blobLayer{evil.blob, claimed.diffID}, blobLayer{claimed.blob, evil.diffID}),
	}
	// In the correct images the layers are in other chains than the false ones claim: if containerd has a
	// chain already, it asks no snapshotter.
	top := gzipLayer(t, file("etc/top", 0o644, "top\n"))
	honest := map[string]BuiltImage{"claimed": rawImage(t, top, claimed), "evil": rawImage(t, top, evil)}
	trees := map[string]string{"claimed": "claimed\n", "evil": "evil\n"}
	for name, here := range map[string]struct{ cli, containerd []string }{
		"neither is here":                   {},
		"the CLI brought the claimed layer": {cli: []string{"claimed"}},
		"containerd brought the evil blob":  {containerd: []string{"evil"}},
		"each brought both":                 {[]string{"claimed", "evil"}, []string{"claimed", "evil"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k, c, r := e.NewNode()
			for name, img := range liars {
				r.PushBuilt(img, "liar/"+name+":1")
			}
			for name, img := range honest {
				r.PushBuilt(img, "honest/"+name+":1")
			}
			for _, name := range here.cli {
				k.Pull(r.Ref("honest/" + name + ":1"))
			}
			for _, name := range here.containerd {
				c.Pull(TestRegistry + "/honest/" + name + ":1")
			}
			for range 2 { // what the first refusal left changes nothing
				for name := range liars {
					if res := k.Run("pull", "--progress", "none", r.Ref("liar/"+name+":1")); res.Code != 6 ||
						!strings.Contains(res.Stderr, "diff ID") {
						t.Errorf("%s: want exit 6 and a diff ID named: %s", name, res)
					}
					ref := TestRegistry + "/liar/" + name + ":1"
					if res := c.CtrResult(c.pullArgs(ref)...); res.Code == 0 ||
						!strings.Contains(res.Stderr, "wrong diff id") {
						t.Errorf("%s: want a wrong diff id: %s", name, res)
					}
					if out := c.Ctr("images", "ls", "-q"); strings.Contains(out, ref) {
						t.Errorf("%s: containerd lists it: %s", name, out)
					}
				}
			}
			for name, want := range trees {
				checkMotd(t, name+", by the CLI", k.Pull(r.Ref("honest/"+name+":1")), want)
				ref := TestRegistry + "/honest/" + name + ":1"
				c.Pull(ref)
				dir := c.Mount(ref)
				checkMotd(t, name+", by containerd", dir, want)
				c.Unmount(dir)
			}
			k.MustRun("check")
		})
	}
}

func checkMotd(t *testing.T, what, root, want string) {
	t.Helper()
	if got, err := readFile(root, "etc/motd"); err != nil || got != want {
		t.Errorf("%s: etc/motd is %q, %v", what, got, err)
	}
}

func readFile(elem ...string) (string, error) {
	b, err := os.ReadFile(filepath.Join(elem...))
	return string(b), err
}
