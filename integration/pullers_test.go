package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTwoPulls: concurrent commands that pull the same reference into the same root give the same answer, and
// each byte is downloaded once.
func TestTwoPulls(t *testing.T) {
	eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
		for _, daemon := range []bool{false, true} {
			t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
				e := New(t)
				r, f := newBlobRegistry(t, e)
				k := tank(e)
				if daemon {
					k.Serve()
				}
				r.SetRate(2 * slowRate)
				results := make(chan Result)
				const pulls = 3
				for range pulls {
					go func() { results <- k.Run("pull", "--progress", "none", r.Ref("test/blobs:1")) }()
				}
				paths := map[string]bool{}
				for range pulls {
					res := <-results
					if res.Code != 0 {
						t.Errorf("%s", res)
					}
					paths[res.Stdout] = true
				}
				if len(paths) != 1 {
					t.Fatalf("they answer %v", paths)
				}
				checkFetched(t, r, f.digests()...)
				// When a stream is divided into ranges, what is in flight is downloaded twice; see docs/adr/0014.
				const inFlight = 512 << 10
				if sent := r.Sent(); sent > f.total+f.Config.Size+inFlight {
					t.Errorf("%d bytes were sent of an image of %d", sent, f.total+f.Config.Size)
				}
				CheckTree(t, "pull", k.expect(f.tree), k.Pull(r.Ref("test/blobs:1")))
				k.MustRun("check")
			})
		}
	})
}

// TestSharedBlobs: pulls of two references with the same layers at once download each layer once.
func TestSharedBlobs(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	r.PushBuilt(f.BuiltImage, "test/blobs:2")
	k := e.NewTank()
	r.SetRate(2 * slowRate)
	results := make(chan Result)
	for _, tag := range []string{"1", "2"} {
		go func() { results <- k.Run("pull", "--progress", "none", r.Ref("test/blobs:"+tag)) }()
	}
	for range 2 {
		if res := <-results; res.Code != 0 {
			t.Errorf("%s", res)
		}
	}
	checkFetched(t, r, f.digests()...)
	k.MustRun("rm", r.Ref("test/blobs:1"))
	k.MustRun("gc")
	CheckTree(t, "the other one", f.tree, k.Pull(r.Ref("test/blobs:2"), "--offline"))
}

// TestWhilePulling: every other command answers at once while a long pull owns the root, and none of them breaks it.
func TestWhilePulling(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	own := OwnFixture(t)
	r.Push(own.Layout, own.Ref, own.Name)
	k := e.NewTank()
	other := k.Pull(r.Ref(own.Name))
	for _, l := range f.Layers {
		r.Hold(l.Digest, l.Size/2)
	}
	ref := r.Ref("test/blobs:1")
	pull := k.StartPull(ref)
	Eventually(t, 20*time.Second, "the pull waits for the registry",
		func() bool { return r.Reached(f.Layers[1].Digest) })
	for _, args := range [][]string{
		{"images"}, {"images", "--json"}, {"inspect", r.Ref(own.Name)},
		{"pull", "--offline", "--progress", "none", r.Ref(own.Name)},
		{"pull", "--progress", "none", r.Ref(own.Name)}, {"gc"}, {"check"}, {"gc"},
	} {
		start := time.Now()
		res := k.Run(args[0], args[1:]...)
		if took := time.Since(start); res.Code != 0 || took > time.Second {
			t.Errorf("after %v: %s", took, res)
		}
		if args[0] == "pull" && res.Stdout != other+"\n" {
			t.Errorf("want %s: %s", other, res)
		}
		if args[0] == "images" && strings.Contains(res.Stdout, "blobs") {
			t.Errorf("an image that is not whole is listed: %s", res)
		}
		if !pull.Running() {
			t.Fatalf("the pull ended: %s", tail(pull.Log, 4000))
		}
	}
	r.OpenAll()
	if code, err := pull.Wait(30 * time.Second); err != nil || code != 0 {
		t.Errorf("the pull: exit %d, %v: %s", code, err, tail(pull.Log, 4000))
	}
	CheckTree(t, "the pull", f.tree, k.Pull(ref, "--offline"))
}

// TestOwnerEnds: the command that owns the root ends, by Ctrl-C or kill -9, while another command pulls
// through it. The pull of the other command still succeeds.
func TestOwnerEnds(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			e := New(t)
			r, f := newBlobRegistry(t, e)
			own := OwnFixture(t)
			r.Push(own.Layout, own.Ref, own.Name)
			for _, l := range own.Image.Layers {
				r.Hold(l.Digest, 1)
			}
			k := e.NewTank()
			owner := k.StartPull(r.Ref(own.Name))
			Eventually(t, 20*time.Second, "the first pull waits for the registry",
				func() bool { return r.Reached(own.Image.Layers[0].Digest) })
			r.SetRate(slowRate)
			r.ResetLog()
			second := make(chan Result)
			go func() { second <- k.Run("pull", "--progress", "none", r.Ref("test/blobs:1")) }()
			Eventually(t, 20*time.Second, "the second pull is on its way", func() bool { return r.Sent() > f.total/4 })
			_ = syscall.Kill(owner.Pid(), signal)
			res := <-second
			if res.Code != 0 {
				t.Fatalf("%s", res)
			}
			CheckTree(t, "the second pull", f.tree, strings.TrimSuffix(res.Stdout, "\n"))
			if code, err := owner.Wait(10 * time.Second); err != nil || code == 0 {
				t.Errorf("the owner: exit %d, %v", code, err)
			}
			r.OpenAll()
			CheckTree(t, "the first pull, again", own.Tree, k.Pull(r.Ref(own.Name)))
			k.MustRun("check")
		})
	}
}
