package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
)

// load is random work through both doors. Each worker has images, snapshots and containers of its own, so that it knows
// what has to be there; layers, blobs and collections are shared.
type load struct {
	n          *node
	w          *world
	containers bool

	workers sync.WaitGroup
	ended   atomic.Bool
	excused atomic.Bool // something was killed, so operations may fail
	ops     atomic.Int64

	mu   sync.Mutex
	errs []error // of operations that nothing disturbed
}

// startLoad starts the workers. The seed decides which operations each of them does.
func startLoad(n *node, w *world, all []*image, seed uint64, containers bool) *load {
	l := &load{n: n, w: w, containers: containers}
	half := len(all) / 2
	l.work(rand.New(rand.NewPCG(seed, 1)), all[:half], l.command)
	l.work(rand.New(rand.NewPCG(seed, 2)), all[half:], l.command)
	l.work(rand.New(rand.NewPCG(seed, 3)), all[:half], l.containerd)
	l.work(rand.New(rand.NewPCG(seed, 4)), all[half:], l.containerd)
	return l
}

func (l *load) work(r *rand.Rand, own []*image, op func(*rand.Rand, []*image) error) {
	l.workers.Go(func() {
		for !l.ended.Load() {
			err := op(r, own)
			l.ops.Add(1)
			if err != nil && !l.excused.Load() {
				l.mu.Lock()
				l.errs = append(l.errs, err)
				l.mu.Unlock()
				return
			}
			if err != nil { // what it needs is down
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
}

// end waits until each worker has finished its operation, and returns the errors that nothing explains.
func (l *load) end() []error {
	l.ended.Store(true)
	l.workers.Wait()
	return l.errs
}

// command does one operation by Tank's commands.
func (l *load) command(r *rand.Rand, own []*image) error {
	img := own[r.IntN(len(own))]
	name := l.n.r.Ref(img.name)
	switch x := r.IntN(10); {
	case x < 6:
		return l.n.pull(l.w, name, img)
	case x < 9:
		return l.n.forget(l.w, name)
	default:
		if code, out := l.n.command("gc"); code != 0 {
			return fmt.Errorf("gc: exit %d: %s", code, out)
		}
		return nil
	}
}

// containerd does one operation by containerd.
func (l *load) containerd(r *rand.Rand, own []*image) error {
	img := own[r.IntN(len(own))]
	name := l.n.r.Ref(img.name)
	key := fmt.Sprintf("%s-%d", strings.ReplaceAll(img.name, "/", "-"), r.IntN(3))
	x := r.IntN(20)
	if x >= 6 && x < 16 { // it needs the unpacked image
		if was := l.w.copyOf(); was.images[name] == nil {
			return l.n.unpack(l.w, name, img)
		}
	}
	switch {
	case x < 6:
		return l.n.unpack(l.w, name, img)
	case x < 9:
		return l.n.prepare(l.w, key+"-active", img)
	case x < 12:
		return l.n.commit(l.w, key+"-writing", key+"-committed", img)
	case x < 14:
		return l.n.tag(l.w, name, name+"-second")
	case x < 16 && l.containers && img == own[0] && strings.Contains(img.name, "/i0:"):
		return l.n.run(name)
	case x < 17:
		if err := l.n.untag(l.w, name+"-second"); err != nil {
			return err
		}
		return l.n.untag(l.w, name)
	case x < 19:
		return l.removeOne(key)
	default:
		ctx, cancel := l.n.context(opLimit)
		defer cancel()
		return l.n.collectContainerd(ctx)
	}
}

// removeOne removes a snapshot that this worker has made, if any.
func (l *load) removeOne(key string) error {
	for _, name := range []string{key + "-active", key + "-committed"} {
		if _, ok := l.w.copyOf().snaps[name]; ok {
			return l.n.remove(l.w, name)
		}
	}
	return nil
}

// run runs a container of an image to its end.
func (n *node) run(name string) error {
	id := n.e.Name("run")
	p := n.e.Start("ctr", append([]string{"ctr", "--address", n.socket(), "--namespace", n.namespace(), "run", "--rm",
		"--snapshotter", "tank", "--runc-root", n.e.Path("runc"), "--fifo-dir", n.e.Path("fifo")}, name, id)...)
	n.mu.Lock()
	n.commands[p] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.commands, p)
		n.mu.Unlock()
		_ = os.Remove(p.Log)
	}()
	code, err := p.Wait(opLimit)
	text, _ := os.ReadFile(p.Log)
	if err != nil || code != 0 || !strings.Contains(string(text), "hello from tank") {
		return fmt.Errorf("run %s: exit %d, %w: %s", id, code, err, text)
	}
	return nil
}

// namespace is containerd's, and names the cgroups of containers, which the environment removes.
func (n *node) namespace() string { return filepath.Base(n.e.Dir) }

// removeContainers ends and removes every container of containerd.
func (n *node) removeContainers() error {
	ctx, cancel := n.context(opLimit)
	defer cancel()
	all, err := n.client().Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if task, err := c.Task(ctx, nil); err == nil {
			if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
				return fmt.Errorf("end %s: %w", c.ID(), err)
			}
		}
		if err := c.Delete(ctx); err != nil {
			return fmt.Errorf("remove %s: %w", c.ID(), err)
		}
	}
	return nil
}
