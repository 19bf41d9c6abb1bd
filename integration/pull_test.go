package integration

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPullTree: pull as root gives the listed tree.
func TestPullTree(t *testing.T) {
	images := func(t *testing.T, f Fixture) {
		e := New(t)
		r := e.NewRegistry()
		r.Push(f.Layout, f.Ref, f.Name)
		k := e.NewTank()
		root := k.Pull(r.Ref(f.Name))
		CheckTree(t, "pull", f.Tree, root)

		var out struct {
			Ref, Digest, Manifest, Rootfs string
			Config                        json.RawMessage
			Cached                        bool
		}
		text := k.MustRun("pull", "--json", "--progress", "none", r.Ref(f.Name))
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("pull --json printed %q: %v", text, err)
		}
		want := f.Image.Manifest.Digest.String()
		if out.Ref != r.Ref(f.Name) || out.Digest != want || out.Manifest != want || out.Rootfs != root || !out.Cached {
			t.Errorf("pull --json: %s", text)
		}
		if list := k.MustRun("images"); !strings.Contains(list,
			f.Name[strings.Index(f.Name, "/")+1:strings.Index(f.Name, ":")]) {
			t.Errorf("images does not list the image: %q", list)
		}
	}
	eachImage(t, images)
	t.Run("corner", func(t *testing.T) { images(t, CornerFixture(t)) })
}

// TestAgain: a second pull asks for manifests only.
func TestAgain(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	k := e.NewTank()
	first := k.Pull(r.Ref(f.Name))
	r.ResetLog()
	if again := k.Pull(r.Ref(f.Name)); again != first {
		t.Errorf("pull gives %s, then %s", first, again)
	}
	if gets := r.BlobGets(); len(gets) > 0 {
		t.Errorf("fetched again: %v", gets)
	}
}
