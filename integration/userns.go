package integration

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ordinary is the uid and gid of the ordinary user that Tank is run as.
const ordinary = 65534

// idRange maps ids of a user namespace to those outside.
type idRange struct{ inside, outside, size int }

// subordinate are the ids of an ordinary user with a line in /etc/subuid and /etc/subgid, as RootlessKit maps them.
var subordinate = []idRange{{0, ordinary, 1}, {1, 100000, 65536}}

// Namespace is a user namespace with mounts of its own, as RootlessKit and `unshare -Ur` make it. A
// process holds it; every other one joins it.
type Namespace struct {
	env    *Env
	ids    []idRange
	holder *Process
}

// NewNamespace makes a user namespace, whose root may write below the environment's directory. /run
// there is empty, because shims keep their sockets in it.
func (e *Env) NewNamespace(ids []idRange) *Namespace {
	e.t.Helper()
	requireProgram(e.t, "nsenter")
	requireProgram(e.t, "setpriv")
	n := &Namespace{env: e, ids: ids}
	err := os.Chmod(e.Dir, 0o755)
	for _, dir := range []string{e.Dir, e.Path("tmp"), e.Path("log")} {
		err = errors.Join(err, os.Chown(dir, ordinary, ordinary))
	}
	if err != nil {
		e.t.Fatal(err)
	}
	ready := e.Path("tmp", "ns-"+randomHex(3))
	cmd := exec.Command("/bin/sh", "-c", "mount -t tmpfs run /run && : >"+ready+" && exec sleep 86400")
	cmd.Env, cmd.Dir = e.environ(), e.Dir
	var m []syscall.SysProcIDMap
	for _, r := range ids {
		m = append(m, syscall.SysProcIDMap{ContainerID: r.inside, HostID: r.outside, Size: r.size})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: m, GidMappings: m,
		GidMappingsEnableSetgroups: len(ids) > 1,
		Credential:                 &syscall.Credential{NoSetGroups: len(ids) == 1}, Setpgid: true,
		Pdeathsig: syscall.SIGKILL,
	}
	if err := spawn(cmd); err != nil {
		skipOrFail(e.t, "needs user namespaces: "+err.Error())
	}
	n.holder = e.adopt("namespace", cmd)
	Eventually(e.t, commandLimit, "the namespace is there", func() bool {
		if !n.holder.Running() {
			skipOrFail(e.t, "needs the right to mount inside a user namespace")
		}
		_, err := os.Stat(ready)
		return err == nil
	})
	return n
}

// adopt is for a process that was started otherwise.
func (e *Env) adopt(name string, cmd *exec.Cmd) *Process {
	p := &Process{Name: name, Log: os.DevNull, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.procs = append(e.procs, p)
	return p
}

// joining runs a program inside a namespace, as its root. The process stays the one that was started.
const joining = `#!/bin/sh
exec nsenter --target %d --user --mount --setuid 0 --setgid 0 -- setpriv --pdeathsig=KILL -- %s "$@"
`

// Wrap makes a program that runs a copy of another one inside the namespace, and returns its path.
func (n *Namespace) Wrap(dir, program string) string {
	n.env.t.Helper()
	inner := filepath.Join(dir, "inner", filepath.Base(program))
	if err := os.MkdirAll(filepath.Dir(inner), 0o755); err != nil {
		n.env.t.Fatal(err)
	}
	if _, err := os.Stat(inner); err != nil { // a copy, as the namespace's root need not be able to reach the binary
		b, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(inner, b, 0o755)
		}
		if err != nil {
			n.env.t.Fatal(err)
		}
	}
	outer := filepath.Join(dir, filepath.Base(program))
	if err := os.WriteFile(outer, fmt.Appendf(nil, joining, n.holder.Pid(), inner), 0o755); err != nil {
		n.env.t.Fatal(err)
	}
	return outer
}

// EnterContainerd has the environment's containerd and ctr run inside the namespace.
func (n *Namespace) EnterContainerd() {
	n.env.t.Helper()
	dir := n.env.Path("bin")
	for _, name := range []string{"containerd", "ctr"} {
		n.Wrap(dir, filepath.Join(n.env.Bin, name))
	}
	// containerd starts it, inside already
	shim, err := os.ReadFile(filepath.Join(n.env.Bin, "containerd-shim-runc-v2"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "containerd-shim-runc-v2"), shim, 0o755)
	}
	if err != nil {
		n.env.t.Fatal(err)
	}
	n.env.Bin = dir
	if err := errors.Join(os.Mkdir(n.env.Path("c"), 0o755), os.Chown(n.env.Path("c"), ordinary, ordinary)); err != nil {
		n.env.t.Fatal(err)
	}
}

// NewTank is Env.NewTank inside the namespace.
func (n *Namespace) NewTank() *TankRoot {
	n.env.t.Helper()
	k := n.env.NewTank()
	k.bin = n.Wrap(n.env.Path("tankbin"), k.bin)
	return k
}

// Path is where the namespace's own mounts are seen from outside.
func (n *Namespace) Path(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", n.holder.Pid(), name)
}

// Tree lists the tree at root as it looks from inside: ids are those of the namespace, and a file
// capability is bound to it.
func (n *Namespace) Tree(root string) ([]Node, error) {
	nodes, err := Tree(n.Path(root))
	return n.seen(nodes), err
}

// seen is a tree that was listed outside as it looks from inside.
func (n *Namespace) seen(nodes []Node) []Node {
	for i := range nodes {
		nodes[i].UID, nodes[i].GID = n.inside(nodes[i].UID), n.inside(nodes[i].GID)
		if c, ok := nodes[i].XAttrs["security.capability"]; ok {
			nodes[i].XAttrs["security.capability"] = n.insideCapability(c)
		}
	}
	return nodes
}

func (n *Namespace) inside(id int) int {
	for _, r := range n.ids {
		if id >= r.outside && id < r.outside+r.size {
			return id - r.outside + r.inside
		}
	}
	return 65534 // the overflow ID that the kernel reports for IDs without a mapping
}

// insideCapability turns revision 3 with the namespace's root (linux/capability.h: vfs_ns_cap_data) into revision 2.
func (n *Namespace) insideCapability(value string) string {
	b, err := hex.DecodeString(value)
	if err != nil || len(b) != 24 || b[3] != 3 ||
		n.inside(int(b[20])|int(b[21])<<8|int(b[22])<<16|int(b[23])<<24) != 0 {
		return "not of this namespace: " + value
	}
	b[3] = 2
	return hex.EncodeToString(b[:20])
}

// withoutDevices returns a listed tree as it looks inside a user namespace, where nobody can make device
// nodes and set trusted.*.
func withoutDevices(nodes []Node) []Node {
	var out []Node
	for _, n := range nodes {
		if n.Type == "char" || n.Type == "block" {
			continue
		}
		kept := map[string]string{}
		for name, value := range n.XAttrs {
			if !strings.HasPrefix(name, "trusted.") {
				kept[name] = value
			}
		}
		if n.XAttrs = kept; len(kept) == 0 {
			n.XAttrs = nil
		}
		out = append(out, n)
	}
	return out
}
