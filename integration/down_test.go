package integration

import (
	"strings"
	"testing"
	"time"
)

// TestWhileDown: without the daemon containers run on and can be ended, containerd answers from its own
// database, new ones fail at once with a message that names the daemon's socket, and pulls wait.
// containerd finds the new daemon within seconds.
func TestWhileDown(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNode()
	img, _ := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
	more, tree := smallImage(t, []Entry{file("etc/more", 0o644, "more\n")})
	r.PushBuilt(img, "test/here:1")
	r.PushBuilt(more, "test/more:1")
	r.PushPause()
	ref, moreRef := TestRegistry+"/test/here:1", TestRegistry+"/test/more:1"
	c.Pull(ref)
	h := c.startContainers(t, 2, ref, "/etc/one")
	cri := c.CRI()
	cri.Pull(ref)
	k.Daemon().Kill9()

	for _, args := range [][]string{
		{"images", "ls"}, {"containers", "ls"}, {"tasks", "ls"}, {"content", "ls"}, {"leases", "ls"},
		{"snapshots", "--snapshotter", "tank", "ls"}, {"plugins", "ls"},
	} {
		begin := time.Now()
		res := c.CtrResult(args...)
		needs := args[0] == "content" || args[0] == "snapshots" // they ask the plugin for sizes and infos
		if res.Code != 0 && !needs {
			t.Errorf("%s", res)
		}
		t.Logf("ctr %s: exit %d in %v: %s", strings.Join(args, " "), res.Code, time.Since(begin),
			strings.TrimSpace(res.Stderr))
	}
	begin := time.Now()
	res := c.CtrResult(c.runArgs([]string{"--rm"}, ref, e.Name("down"))...)
	if took := time.Since(begin); res.Code == 0 || !strings.Contains(res.Stderr, k.Socket) || took > 10*time.Second {
		t.Errorf("ctr run without the daemon, after %v, has to fail at once and to name %s: %s", took, k.Socket, res)
	}
	t.Logf("ctr run: %s", strings.TrimSpace(res.Stderr))
	// containerd takes a content store that is unavailable for a blob that somebody else writes, and
	// tries again until it is there.
	pull, given := c.StartPull(moreRef), c.StartPull(ref)
	h.checkAlive(t, "without the daemon")
	h.checkTasks(t, "without the daemon")
	given.Stop()
	if !pull.Running() {
		t.Errorf("the pull does not wait for the daemon: %s", tail(pull.Log, 4000))
	}

	k.Serve()
	begin = time.Now()
	c.AwaitPlugin()
	if took := time.Since(begin); took > 5*time.Second { // gRPC's back-off is 3 s at most
		t.Errorf("containerd took %v to find the daemon again", took)
	} else {
		t.Logf("containerd found the daemon again after %v", took)
	}
	if code, err := pull.Wait(20 * time.Second); err != nil || code != 0 {
		t.Errorf("the pull that waited for the daemon: exit %d, %v: %s", code, err, tail(pull.Log, 4000))
	}
	dir := c.Mount(moreRef)
	CheckTree(t, "pulled after the daemon came back", tree, dir)
	c.Unmount(dir)
	h.remove(t)
}

// TestBootOrder: daemon and containerd may start in any order, also on a root that the other has used before.
func TestBootOrder(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	img, _ := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
	r.PushBuilt(img, "test/here:1")
	ref := TestRegistry + "/test/here:1"
	k := e.NewTank()
	c := e.NewContainerd(ContainerdOptions{Import: k.DropIn(), Snapshotter: "tank", Registries: []*Proxy{r.Proxy}})
	for i, boot := range []struct {
		name  string
		start func()
	}{
		{"containerd alone, and the daemon later", func() { k.Serve() }}, // at first the root is not there yet
		{"the daemon first", func() { k.Serve(); c.Start() }},
		{"containerd first", func() { c.Start(); k.Serve() }},
		{"both at once", func() {
			done := make(chan struct{})
			go func() { defer close(done); c.Start() }()
			k.Serve()
			<-done
		}},
	} {
		boot.start()
		c.AwaitPlugin()
		if i == 0 {
			c.Pull(ref)
			r.Stop() // later boots have no network
		}
		c.checkHello(t, boot.name, ref)
		if out := c.Ctr("images", "check", "--snapshotter", "tank", "name=="+ref); !strings.Contains(out, "complete") ||
			!strings.Contains(out, "true") {
			t.Errorf("%s: %s", boot.name, out)
		}
		if i%2 == 0 {
			c.Stop()
			k.Daemon().Stop()
		} else {
			k.Daemon().Stop()
			c.Stop()
		}
	}
}
