package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// heldBy is one holder in the output of `holders --json`.
type heldBy struct {
	Holder                                           string
	Blobs, Ingests, Layers, Rootfs, Snapshots, Bytes int64
	Alone                                            int64
	Database                                         string
	Seen                                             time.Time
	Connected                                        bool
}

// holders returns the output of `holders --json` by the names of the holders.
func (k *TankRoot) holders() map[string]heldBy {
	k.env.t.Helper()
	var list []heldBy
	if out := k.MustRun("holders", "--json"); json.Unmarshal([]byte(out), &list) != nil {
		k.env.t.Fatalf("holders printed %q", out)
	}
	all := map[string]heldBy{}
	for _, h := range list {
		all[h.Holder] = h
	}
	return all
}

// TestRelease: `holders` lists what a lost containerd still holds, and `release` gives it up only when no container
// uses it. An image that Tank's own command pulled stays.
func TestRelease(t *testing.T) {
	own, corner := OwnFixture(t), CornerFixture(t)
	for _, tc := range []struct {
		name   string
		setup  Setup
		daemon bool // a daemon does the release
	}{
		{"through the daemon", Setup{}, true},
		{"without a daemon", Setup{}, false},
		{"directory mode", Setup{Directory: true}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New(t)
			k, c, r := e.NewNodeAs(tc.setup)
			for _, f := range []Fixture{own, corner} {
				r.Push(f.Layout, f.Ref, f.Name)
			}
			kept := r.Ref(corner.Name)
			k.Pull(kept)
			for _, f := range []Fixture{own, corner} {
				c.Pull(TestRegistry + "/" + f.Name)
			}
			id := e.Name("left")
			c.RunDetached(TestRegistry+"/"+own.Name, id, "/usr/bin/hello", "pause")

			image, left := k.holders()["image/"+kept], k.holders()["containerd"]
			if image.Blobs < 3 || image.Layers == 0 || image.Rootfs != 1 || image.Snapshots != 0 ||
				image.Alone >= image.Bytes {
				t.Errorf("the holder of the command's image: %+v", image)
			}
			if layers := int64(len(own.Image.Layers)); left.Blobs <= image.Blobs || left.Snapshots <= layers ||
				left.Layers < layers ||
				left.Rootfs != 0 || left.Alone == 0 || left.Alone >= left.Bytes {
				t.Errorf("containerd: %+v", left)
			}
			refused := func(why string) {
				t.Helper()
				if r := k.Run("release", "containerd"); r.Code != 1 || !strings.Contains(r.Stderr, why) {
					t.Errorf("expected a refusal, %s: %s", why, r)
				}
				if now := k.holders()["containerd"]; now.Snapshots != left.Snapshots || now.Blobs != left.Blobs {
					t.Errorf("the refused release released something: %+v", now)
				}
			}
			if r := k.Run("release", "containerd"); r.Code != 1 || !strings.Contains(r.Stderr, "connected") {
				t.Errorf("release while containerd is connected: %s", r)
			}
			// containerd is gone for good, and its container still runs.
			c.Kill9()
			if !tc.daemon {
				k.Daemon().Stop()
			}
			refused("mounted at " + c.Dir)
			if err := endShims(e.Dir); err != nil {
				t.Fatal(err)
			}
			if err := unmountBelow(filepath.Join(c.Dir, "state")); err != nil {
				t.Fatal(err)
			}
			Eventually(t, 30*time.Second, "containerd is released",
				func() bool { return k.Run("release", "containerd").Code == 0 })
			after := k.holders()
			if now := after["image/"+kept]; len(after) != 1 || now.Blobs != image.Blobs || now.Bytes != image.Bytes ||
				now.Alone != now.Bytes {
				t.Errorf("after the release: %+v, before %+v", after, image)
			}
			if r := k.Run("release", "containerd"); r.Code != 3 {
				t.Errorf("released twice: %s", r)
			}
			k.MustRun("gc")
			for _, name := range k.Leftovers() {
				if strings.Contains(name, "snapshots/") || strings.Contains(name, "ingest/") {
					t.Errorf("left: %s", name)
				}
			}
			k.Pull(kept, "--offline")
			k.MustRun("check")
			k.MustRun("release", "image/"+kept)
			k.MustRun("gc")
			checkEmpty(t, k)
		})
	}
}
