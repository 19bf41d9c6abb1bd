package proof

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"go.etcd.io/bbolt"

	"github.com/tank-snapshotter/tank/integration"
)

// node is Tank's daemon and a containerd whose data lies below one directory.
type node struct {
	t    *testing.T
	e    *integration.Env
	dir  string // Tank's root and containerd's
	k    *integration.TankRoot
	r    *integration.Registry
	trap *trap // nil: syncs are not counted

	baseName string // the image that the node has before a history

	strict bool // a commit that was cut in the middle must leave the active snapshot

	program string // Tank's, if it is not the one of the other tests

	boots int // times that the machine was started

	mu         sync.Mutex // guards the fields below
	tank, ctrd *integration.Process
	cl         *client.Client
	commands   map[*integration.Process]bool // the commands that run
	killed     map[*integration.Process]bool // the processes that got a SIGKILL
	hurried    chan struct{}                 // closed by hurry
}

// newNode makes a node below dir. The programs start with boot.
func newNode(t *testing.T, e *integration.Env, r *integration.Registry, dir string, tr *trap) *node {
	n := &node{t: t, e: e, dir: dir, k: e.NewTank(), r: r, trap: tr, strict: os.Getenv("TANK_PROOF_RANGE") != "",
		commands: map[*integration.Process]bool{}, killed: map[*integration.Process]bool{},
		hurried: make(chan struct{})}
	n.k.Root = filepath.Join(dir, "tank")
	t.Cleanup(func() { n.halt() })
	return n
}

func (n *node) socket() string { return n.e.Path(fmt.Sprintf("s%d", n.boots), "c.sock") }

// boot starts the programs as after a start of the machine: /run is empty.
func (n *node) boot() {
	n.t.Helper()
	n.boots++
	state := filepath.Dir(n.socket())
	for _, dir := range []string{state, filepath.Join(n.dir, "containerd")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			n.t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`version = 3
root = %q
state = %q
imports = [%q]
disabled_plugins = [%s]
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.gc.v1.scheduler']
  startup_delay = "1h"
`, n.dir+"/containerd", state, n.k.DropIn(), unused, n.socket(), n.socket()+".ttrpc")
	if err := os.WriteFile(n.e.Path("c.toml"), []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.startTank()
	n.startContainerd()
	n.awaitPlugin()
}

// recorded lists the keys that containerd's database has, from a copy of it. containerd itself does not list those that
// Tank does not know.
func (n *node) recorded() (keys []string, err error) {
	b, err := os.ReadFile(filepath.Join(n.dir, "containerd", "io.containerd.metadata.v1.bolt", "meta.db"))
	if err != nil {
		return nil, err
	}
	name := n.e.Path("meta.db")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("read containerd's database: %w", err)
	}
	defer db.Close()
	return keys, db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{n.namespace(), "snapshots", "tank"} {
			if b == nil {
				return nil
			}
			b = b.Bucket([]byte(name))
		}
		if b == nil {
			return nil
		}
		return b.ForEachBucket(func(key []byte) error {
			keys = append(keys, string(key))
			return nil
		})
	})
}

// unused are plugins of containerd that the proofs do not call, so that it starts sooner.
const unused = `"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"`

func (n *node) start(name string, argv ...string) *integration.Process {
	if n.trap != nil {
		argv = n.trap.argv(argv)
	}
	return n.e.Start(name, argv...)
}

func (n *node) startTank() {
	n.t.Helper()
	argv := n.k.Args("serve", "--address", n.k.Socket, "--log-level", "warn", "--config", n.k.ConfigFile())
	if n.program != "" {
		argv[0] = n.program
	}
	p := n.start("tank", argv...)
	n.await(p, n.k.Socket)
	n.mu.Lock()
	n.tank = p
	n.mu.Unlock()
}

func (n *node) startContainerd() {
	n.t.Helper()
	p := n.start("containerd", "containerd", "--config", n.e.Path("c.toml"), "--log-level", "error")
	n.await(p, n.socket())
	cl, err := client.New(n.socket(), client.WithDefaultNamespace(n.namespace()), client.WithTimeout(20*time.Second))
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	if n.cl != nil {
		_ = n.cl.Close()
	}
	n.ctrd, n.cl = p, cl
	n.mu.Unlock()
}

// await waits until a process listens on a socket.
func (n *node) await(p *integration.Process, socket string) {
	n.t.Helper()
	integration.Eventually(n.t, 30*time.Second, p.Name+" answers", func() bool {
		if !p.Running() {
			text, _ := os.ReadFile(p.Log)
			n.t.Fatalf("%s ended: %s", p.Name, text)
		}
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
}

// awaitPlugin waits until containerd reaches Tank: it retries a lost connection after some time.
func (n *node) awaitPlugin() {
	n.t.Helper()
	var err error
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		ctx, cancel := n.context(5 * time.Second)
		_, err = n.client().SnapshotService("tank").Prepare(ctx, "reach", "")
		if err == nil || strings.Contains(err.Error(), "already exists") {
			err = n.client().SnapshotService("tank").Remove(ctx, "reach")
		}
		cancel()
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.t.Fatalf("containerd does not reach Tank: %v", err)
}

// context is that of one operation. It ends after the limit, or when hurry is called.
func (n *node) context(limit time.Duration) (context.Context, context.CancelFunc) {
	n.mu.Lock()
	hurry := n.hurried
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(n.t.Context(), limit)
	go func() {
		select {
		case <-hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// hurry ends the operations that wait for containerd, which may wait for a daemon that was killed, and the commands of
// ctr.
func (n *node) hurry() {
	n.mu.Lock()
	close(n.hurried)
	n.hurried = make(chan struct{})
	var clients []*integration.Process
	for p := range n.commands {
		if p.Name == "ctr" {
			clients = append(clients, p)
		}
	}
	n.mu.Unlock()
	n.kill(clients...)
}

func (n *node) client() *client.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cl
}

// command runs a command of Tank to its end and returns its exit code, -1 after a signal, and its output.
func (n *node) command(name string, args ...string) (int, string) {
	p := n.e.Start(name, n.k.Args(name, append(args, "--log-level", "error")...)...)
	n.mu.Lock()
	n.commands[p] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.commands, p)
		n.mu.Unlock()
		_ = os.Remove(p.Log)
	}()
	code, err := p.Wait(2 * time.Minute)
	text, _ := os.ReadFile(p.Log)
	if err != nil {
		return -1, err.Error()
	}
	return code, string(text)
}

// running lists what can be killed: the daemon, containerd, the commands.
func (n *node) running() (tank, ctrd *integration.Process, commands []*integration.Process) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.commands {
		commands = append(commands, p)
	}
	return n.tank, n.ctrd, commands
}

// kill kills processes at once, without waiting between them.
func (n *node) kill(processes ...*integration.Process) {
	for _, p := range processes {
		if p != nil {
			n.mu.Lock()
			n.killed[p] = true
			n.mu.Unlock()
			_ = syscall.Kill(p.Pid(), syscall.SIGKILL)
		}
	}
}

// halt kills everything of the node and waits for its end.
func (n *node) halt() {
	tank, ctrd, commands := n.running()
	all := append(commands, tank, ctrd)
	n.kill(all...)
	for _, p := range all {
		if p != nil {
			<-p.Done()
			_ = os.Remove(p.Log)
		}
	}
	if err := n.e.EndContainers(); err != nil {
		n.t.Errorf("end containers: %v", err)
	}
	n.mu.Lock()
	if n.cl != nil {
		_ = n.cl.Close()
	}
	n.tank, n.ctrd, n.cl = nil, nil, nil
	n.mu.Unlock()
}

// stop ends the programs in good order.
func (n *node) stop() {
	tank, ctrd, _ := n.running()
	ctrd.Stop()
	tank.Stop()
	n.halt()
}
