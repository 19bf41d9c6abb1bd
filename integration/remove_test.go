package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkEmpty waits until nothing is left of any image.
func checkEmpty(t testing.TB, k *TankRoot) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for left := k.Leftovers(); len(left) > 0; left = k.Leftovers() {
		if time.Now().After(deadline) {
			t.Fatalf("left on disk:\n%s", strings.Join(left, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, err := os.ReadFile(filepath.Join(k.Root, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Manifests []any }
	if err := json.Unmarshal(b, &index); err != nil || len(index.Manifests) > 0 {
		t.Errorf("index.json: %s (%v)", b, err)
	}
	if out := k.MustRun("images", "--json"); strings.Contains(out, "sha256:") {
		t.Errorf("images: %s", out)
	}
}

// TestNothingLeft: after rm, containerd's collection and gc, no byte of an image is left.
func TestNothingLeft(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		t.Run("alone", func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			k := e.NewTank()
			k.Pull(r.Ref(f.Name))
			k.MustRun("rm", r.Ref(f.Name))
			k.MustRun("gc")
			checkEmpty(t, k)
		})
		t.Run("node", func(t *testing.T) {
			e := New(t)
			k, c, r := e.NewNode()
			r.Push(f.Layout, f.Ref, f.Name)
			ref := TestRegistry + "/" + f.Name
			k.Pull(r.Ref(f.Name))
			c.Pull(ref)
			c.Run(ref, e.Name("hello"))
			dir := c.Mount(ref)
			c.Unmount(dir)
			k.MustRun("rm", r.Ref(f.Name))
			c.RemoveImage(ref)
			k.MustRun("gc")
			checkEmpty(t, k)
		})
		t.Run("killed", func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(f.Layout, f.Ref, f.Name)
			k := e.NewTank()
			startSlowly(t, r, f.Image, func() *Process { return k.StartPull(r.Ref(f.Name)) }).Kill9()
			if len(k.Leftovers()) == 0 {
				t.Error("the killed pull left nothing, so this shows nothing")
			}
			k.Run("rm", r.Ref(f.Name)) // an image that was never whole: only what the pull held is to go
			k.MustRun("gc")
			checkEmpty(t, k)
		})
	})
}
