package integration

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// containerSet is a number of running containers of one image. Each container appends lines to its own file and reads
// files of the image again and again.
type containerSet struct {
	c    *Containerd
	pids map[string]int // by id
}

// startContainers starts n containers, four at a time.
func (c *Containerd) startContainers(t *testing.T, n int, ref string, reads ...string) *containerSet {
	t.Helper()
	s := &containerSet{c, map[string]int{}}
	ids := make(chan string, n)
	for i := range n {
		ids <- fmt.Sprintf("%s-%02d", c.env.Name("many"), i)
	}
	close(ids)
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for id := range ids {
				args := append([]string{"/usr/bin/hello", "live", "/tmp/" + id}, reads...)
				if r := c.ctr(c.runArgs([]string{"--detach", "--null-io"}, ref, id, args...)...); r.Code != 0 {
					t.Errorf("%s", r)
				}
			}
		})
	}
	starters.Wait()
	s.pids = c.tasks()
	if len(s.pids) != n {
		t.Fatalf("%d of %d containers run", len(s.pids), n)
	}
	return s
}

// tasks returns the process IDs of the running tasks, by container.
func (c *Containerd) tasks() map[string]int {
	c.env.t.Helper()
	pids := map[string]int{}
	for line := range strings.Lines(c.Ctr("tasks", "ls")) {
		if f := strings.Fields(line); len(f) >= 3 && f[2] == "RUNNING" {
			var pid int
			if _, err := fmt.Sscan(f[1], &pid); err == nil {
				pids[f[0]] = pid
			}
		}
	}
	return pids
}

// counts returns the number of lines that each container has written, -1 if its file does not exist.
func (s *containerSet) counts() map[string]int {
	counts := map[string]int{}
	for id, pid := range s.pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/%s", pid, id))
		if counts[id] = strings.Count(string(b), "\n"); err != nil {
			counts[id] = -1
		}
	}
	return counts
}

// checkAlive waits until each container has read its files again and written another line.
func (s *containerSet) checkAlive(t *testing.T, when string) {
	t.Helper()
	before := s.counts()
	stuck := map[string]int{}
	deadline := time.Now().Add(20 * time.Second)
	for now := before; time.Now().Before(deadline); now = s.counts() {
		stuck = map[string]int{}
		for id, n := range now {
			if n < max(before[id], 0)+2 {
				stuck[id] = n
			}
		}
		if len(stuck) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: %d containers write nothing: %v", when, len(stuck), stuck)
}

// checkTasks compares containerd's tasks with the running processes.
func (s *containerSet) checkTasks(t *testing.T, when string) {
	t.Helper()
	tasks := s.c.tasks()
	for id, pid := range s.pids {
		if tasks[id] != pid {
			t.Errorf("%s: in containerd, %s is process %d; it is %d", when, id, tasks[id], pid)
		}
	}
}

// remove ends the containers and removes them with their snapshots.
func (s *containerSet) remove(t *testing.T) {
	t.Helper()
	var ids []string
	for id := range s.pids {
		ids = append(ids, id)
	}
	s.c.Ctr(append([]string{"tasks", "rm", "--force"}, ids...)...)
	s.c.Ctr(append([]string{"containers", "rm"}, ids...)...)
	for id, pid := range s.pids {
		if err := unix.Kill(pid, 0); err == nil {
			t.Errorf("%s: process %d still runs", id, pid)
		}
	}
}

// killOrder is one way in which daemon and containerd end and come back, while both pull.
type killOrder struct {
	name   string
	kill   func(k *TankRoot, c *Containerd)
	revive func(k *TankRoot, c *Containerd)
}

var killOrders = []killOrder{
	{
		"daemon first", func(k *TankRoot, c *Containerd) { k.Daemon().Kill9(); c.Kill9() },
		func(k *TankRoot, c *Containerd) { k.Serve(); c.Start() },
	},
	{
		"containerd first", func(k *TankRoot, c *Containerd) { c.Kill9(); k.Daemon().Kill9() },
		func(k *TankRoot, c *Containerd) { c.Start(); k.Serve() },
	},
	{
		"both at once", func(k *TankRoot, c *Containerd) {
			var both sync.WaitGroup
			both.Go(k.Daemon().Kill9)
			both.Go(c.Kill9)
			both.Wait()
		},
		func(k *TankRoot, c *Containerd) { k.Serve(); c.Start() },
	},
	{
		"the daemon while containerd starts", func(_ *TankRoot, c *Containerd) { c.Kill9() },
		func(k *TankRoot, c *Containerd) {
			var killed sync.WaitGroup
			killed.Go(func() {
				time.Sleep(200 * time.Millisecond) // about the middle of its start
				k.Daemon().Kill9()
			})
			c.Start()
			killed.Wait()
			k.Serve()
		},
	},
}

// TestKillUnderContainers: under 50 running containers and two pulls, daemon and containerd are killed
// in every order. The containers keep their files, both programs come back without network, the pulls
// succeed when they are repeated, and in the end nothing is left.
func TestKillUnderContainers(t *testing.T) {
	e := New(t)
	k, c, r := e.NewNode()
	img, _ := smallImage(t, []Entry{file("etc/one", 0o644, noise(1, 3000))},
		[]Entry{file("etc/two", 0o644, noise(2, 3000))})
	r.PushBuilt(img, "test/many:1")
	ref := TestRegistry + "/test/many:1"
	c.Pull(ref)
	begin := time.Now()
	h := c.startContainers(t, 50, ref, "/etc/one", "/etc/two", "/usr/bin/hello")
	h.checkAlive(t, "at first")
	t.Logf("50 containers started in %v", time.Since(begin))

	for i, order := range killOrders {
		begin := time.Now()
		name := fmt.Sprintf("test/pulled:%d", i)
		pulled, tree := smallImage(t, []Entry{file("etc/big", 0o644, noise(uint64(100+i), 1<<20))},
			[]Entry{file("etc/big2", 0o644, noise(uint64(200+i), 1<<20))})
		r.PushBuilt(pulled, name)
		r.ResetLog()
		r.SetRate(400 << 10)
		pulls := []*Process{c.StartPull(TestRegistry + "/" + name), k.StartPull(r.Ref(name))}
		Eventually(t, 30*time.Second, "a part of the image is sent", func() bool { return r.Sent() > 200<<10 })
		order.kill(k, c)
		h.checkAlive(t, order.name+": killed")
		r.Stop()
		r.SetRate(0)
		order.revive(k, c)
		c.AwaitPlugin()
		for _, p := range pulls {
			if _, err := p.Wait(time.Minute); err != nil {
				t.Error(err)
			}
		}
		h.checkAlive(t, order.name+": back without network")
		h.checkTasks(t, order.name+": back without network")
		c.checkHello(t, order.name+": back without network", ref)
		k.MustRun("images")
		r.Restart()
		c.Pull(TestRegistry + "/" + name)
		CheckTree(t, order.name+": pulled again", tree, k.Pull(r.Ref(name)))
		dir := c.Mount(TestRegistry + "/" + name)
		CheckTree(t, order.name+": pulled again by containerd", tree, dir)
		c.Unmount(dir)
		k.MustRun("check")
		k.MustRun("rm", r.Ref(name))
		c.RemoveImage(TestRegistry + "/" + name)
		t.Logf("%s: %v", order.name, time.Since(begin))
	}
	h.checkAlive(t, "at last")
	h.remove(t)
	// of killed pulls: containerd would keep them for a day
	for _, lease := range strings.Fields(c.Ctr("leases", "ls", "-q")) {
		c.Ctr("leases", "delete", "--sync", lease)
	}
	c.RemoveImage(ref)
	k.MustRun("gc")
	checkEmpty(t, k)
}
