package integration

import (
	"strings"
	"testing"
)

// TestDoors: Tank's commands and containerd do not list each other's images, but use each other's blobs and layers as
// README promises.
func TestDoors(t *testing.T) {
	for name, s := range map[string]Setup{"full": {}, "second": {WithoutContent: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k, c, r := e.NewNodeAs(s)
			f := OwnFixture(t)
			r.Push(f.Layout, f.Ref, f.Name)
			ref, cli := TestRegistry+"/"+f.Name, r.Ref(f.Name)
			downloads := func(what string, want bool) {
				t.Helper()
				if gets := layerGets(r, f.Image); len(gets) > 0 != want {
					t.Errorf("%s downloaded %v", what, gets)
				}
				r.ResetLog()
			}
			c.Pull(ref)
			downloads("the first pull", true)
			if out := k.MustRun("images"); strings.Contains(out, f.Name) {
				t.Errorf("the CLI lists containerd's image: %s", out)
			}
			if res := k.Run("pull", "--offline", "--progress", "none", cli); res.Code != 3 {
				t.Errorf("pull --offline of containerd's image: %s", res)
			}
			appeared := k.watchStaging(t)
			k.Pull(cli)
			downloads("the CLI's pull", s.WithoutContent)
			c.RemoveImage(ref)
			if out := c.Ctr("images", "ls", "-q"); strings.Contains(out, f.Name) {
				t.Errorf("containerd lists the CLI's image: %s", out)
			}
			c.Pull(ref)
			downloads("containerd's pull", s.WithoutContent)
			if unpacked := unpackedAmong(appeared(), f.Image); len(unpacked) > 0 {
				t.Errorf("unpacked again: %v", unpacked)
			}
		})
	}
}
