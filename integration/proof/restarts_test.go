package proof

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// fleet is a number of running containers. Each reads files of its image again and again, ends when one of them fails
// or differs, and adds lines to a file of its own.
type fleet struct {
	n      *node
	pids   map[string]int // by id
	mounts map[string]string
}

// startFleet starts count containers of an image, four at a time.
func startFleet(n *node, count int, name string, reads ...string) (*fleet, error) {
	f := &fleet{n: n, pids: map[string]int{}, mounts: map[string]string{}}
	ids := make(chan string, count)
	for i := range count {
		ids <- fmt.Sprintf("%s-%d", n.e.Name("c"), i)
	}
	close(ids)
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for id := range ids {
				argv := append([]string{"ctr", "--address", n.socket(), "--namespace", n.namespace(), "run", "--detach",
					"--null-io", "--snapshotter", "tank", "--runc-root", n.e.Path("runc"), "--fifo-dir",
					n.e.Path("fifo"),
					name, id, "/usr/bin/hello", "live", "/tmp/lines"}, reads...)
				if r := n.e.Run(argv...); r.Code != 0 {
					n.t.Errorf("%s", r)
				}
			}
		})
	}
	starters.Wait()
	ctx, cancel := n.context(opLimit)
	defer cancel()
	all, err := n.client().Containers(ctx)
	if err != nil {
		return f, err
	}
	for _, c := range all {
		task, err := c.Task(ctx, nil)
		if err != nil {
			return f, fmt.Errorf("%s: %w", c.ID(), err)
		}
		pid := int(task.Pid())
		f.pids[c.ID()] = pid
		if f.mounts[c.ID()], err = mountsOf(pid); err != nil {
			return f, err
		}
	}
	if len(f.pids) != count {
		return f, fmt.Errorf("%d of %d containers run", len(f.pids), count)
	}
	return f, nil
}

// mountsOf returns the mounts that a process sees.
func mountsOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	return string(b), err
}

// lines returns how many lines a container has written. It reads through the container's root.
func (f *fleet) lines(id string) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/lines", f.pids[id]))
	return strings.Count(string(b), "\n"), err
}

// alive waits until each container has read its files twice more, and compares its mounts with those of the start.
func (f *fleet) alive() error {
	before := map[string]int{}
	for id := range f.pids {
		before[id], _ = f.lines(id)
	}
	var errs []error
	deadline := time.Now().Add(60 * time.Second)
	for id, pid := range f.pids {
		for {
			n, err := f.lines(id)
			if err == nil && n >= before[id]+2 {
				break
			}
			if e := syscall.Kill(pid, 0); e != nil {
				return fmt.Errorf("container %s has ended", id)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("container %s stands still after %d lines, %w", id, n, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		now, err := mountsOf(pid)
		if err != nil || now != f.mounts[id] {
			errs = append(errs,
				fmt.Errorf("container %s: its mounts changed, %w:\n%s\nafter\n%s", id, err, now, f.mounts[id]))
		}
	}
	return errors.Join(errs...)
}

// restart ends the daemon in one of three ways, and starts it again: by SIGTERM, by SIGKILL, or by an upgrade, which
// puts another file in the place of the program before it ends the old one.
func (n *node) restart(i int) error {
	tank, _, _ := n.running()
	switch i % 3 {
	case 0:
		tank.Stop()
	case 1:
		n.kill(tank)
	case 2:
		b, err := os.ReadFile(n.program)
		if err == nil {
			err = os.WriteFile(n.program+".new", b, 0o755)
		}
		if err == nil {
			err = os.Rename(n.program+".new", n.program)
		}
		if err != nil {
			return fmt.Errorf("upgrade: %w", err)
		}
		tank.Stop()
	}
	<-tank.Done()
	_ = os.Remove(tank.Log)
	n.startTank()
	return nil
}

// checkEvery is after how many restarts the containers and the root are looked at.
const checkEvery = 10

// TestRestarts restarts the daemon under running containers, which do I/O and compare the files of their root file
// system. A range makes the long version, with 100 containers: each number is one restart.
func TestRestarts(t *testing.T) {
	count := 6
	if os.Getenv("TANK_PROOF_RANGE") != "" {
		count = 100
	}
	c := newCampaign(t, integration.Run{Proof: "restarts", Also: map[string]int64{"containers": int64(count)}}, 1<<30,
		[2]int{1, 6})
	e := integration.New(t)
	r := e.NewRegistry()
	all := newImages(t, r, 2, 20_000)
	n := newNode(t, e, r, e.Path("node"), nil)
	n.ownProgram(t)
	n.boot()
	w := newWorld()
	name := r.Ref(all[0].name)
	if err := errors.Join(n.unpack(w, name, all[0]), n.pull(w, r.Ref(all[1].name), all[1])); err != nil {
		t.Fatal(err)
	}
	f, err := startFleet(n, count, name, "/etc/shared", "/etc/own0", "/usr/bin/hello")
	if err == nil {
		err = f.alive()
	}
	if err != nil {
		t.Fatal(err)
	}
	for c.more() {
		err := n.restart(c.next)
		if err == nil && (c.next%checkEvery == 0 || c.next == c.last) {
			if err = f.alive(); err == nil {
				n.awaitPlugin()
				err = w.verify(n)
			}
		}
		var failures int64
		if err != nil {
			failures = 1
			t.Errorf("restart %d: %v", c.next, err)
		}
		c.done(1, failures)
		if err != nil {
			break
		}
	}
	n.awaitPlugin()
	if err := errors.Join(f.alive(), n.drain()); err != nil {
		t.Error(err)
	}
}

// ownProgram gives the node a copy of Tank's program that it can replace.
func (n *node) ownProgram(t *testing.T) {
	t.Helper()
	n.program = filepath.Join(n.e.Dir, "tank-snapshotter")
	b, err := os.ReadFile(n.k.Args("version")[0])
	if err == nil {
		err = os.WriteFile(n.program, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
