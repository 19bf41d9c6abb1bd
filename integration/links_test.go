package integration

import (
	"strings"
	"testing"
)

// TestLinks: through both doors a hard link to a lower file that the same layer removes or replaces later keeps the
// file, and an image with a hard link to a file that no layer has is refused while it is pulled. The layer with that
// link is the same in both images, so that one of them makes it known to the other.
func TestLinks(t *testing.T) {
	linked := gzipLayer(t, hardlink("etc/motd", "etc/old", 0o644), hardlink("etc/again", "etc/new", 0o644),
		file("etc/new", 0o644, "replaced\n"), file("etc/.wh.old", 0o644, ""))
	good := rawImage(t,
		gzipLayer(t, dir("etc", 0o755), file("etc/old", 0o644, "old\n"), file("etc/new", 0o644, "new\n")),
		linked)
	bad := rawImage(t, gzipLayer(t, dir("etc", 0o755), file("etc/old", 0o644, "old\n")), linked)
	for _, row := range []struct {
		name string
		refs []string
	}{
		{"the invalid image first", []string{"bad", "good", "bad"}},
		{"the valid image first", []string{"good", "bad"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			k, c, r := New(t).NewNode()
			r.PushBuilt(good, "links/good:1")
			r.PushBuilt(bad, "links/bad:1")
			for _, name := range row.refs {
				ref := TestRegistry + "/links/" + name + ":1"
				if name == "good" {
					c.Pull(ref)
					d := c.Mount(ref)
					checkMotd(t, "by containerd", d, "old\n")
					if got, err := readFile(d, "etc/again"); err != nil || got != "new\n" {
						t.Errorf("etc/again is %q, %v", got, err)
					}
					c.Unmount(d)
					checkMotd(t, "by the CLI", k.Pull(r.Ref("links/good:1")), "old\n")
					continue
				}
				if res := c.CtrResult(c.pullArgs(ref)...); res.Code == 0 ||
					!strings.Contains(res.Stderr, `hard link to "etc/new"`) {
					t.Errorf("by containerd: want a refusal that names the target: %s", res)
				}
				if out := c.Ctr("images", "ls", "-q"); strings.Contains(out, ref) {
					t.Errorf("containerd lists it: %s", out)
				}
				res := k.Run("pull", "--progress", "none", r.Ref("links/bad:1"))
				if res.Code != 6 || !strings.Contains(res.Stderr, `hard link to "etc/new"`) {
					t.Errorf("by the CLI: want exit 6 and the target named: %s", res)
				}
			}
			k.MustRun("check")
		})
	}
}
