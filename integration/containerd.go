package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Containerd is a containerd on private paths.
type Containerd struct {
	env         *Env
	Dir         string // root/, state/, runc/, hosts/, config.toml
	Socket      string
	Namespace   string   // of ctr's commands
	Snapshotter string   // of ctr's commands
	runFlags    []string // of every `ctr run`
	proc        *Process
}

// ContainerdOptions of NewContainerd; the zero value is containerd's own overlayfs.
type ContainerdOptions struct {
	Import      string   // a drop-in for `imports`; empty: none
	Snapshotter string   // empty: overlayfs
	Registries  []*Proxy // each is reached as registry.test and by its own address
	Sandbox     string   // reference of the pause image; empty: containerd's default, which is never pulled here
	Name        string   // of its directory; empty: c
}

func (o *ContainerdOptions) setName() {
	if o.Name == "" {
		o.Name = "c"
	}
}

// containerdSocket is where the containerd will listen.
func (e *Env) containerdSocket(o ContainerdOptions) string {
	o.setName()
	return e.Path(o.Name, "c.sock")
}

// NewContainerd writes the configuration and starts containerd.
func (e *Env) NewContainerd(o ContainerdOptions) *Containerd {
	e.t.Helper()
	o.setName()
	if o.Snapshotter == "" {
		o.Snapshotter = "overlayfs"
	}
	c := &Containerd{env: e, Dir: e.Path(o.Name), Socket: e.containerdSocket(o), Namespace: filepath.Base(e.Dir),
		Snapshotter: o.Snapshotter}
	if err := os.MkdirAll(filepath.Join(c.Dir, "hosts"), 0o755); err != nil {
		e.t.Fatal(err)
	}
	for _, r := range o.Registries {
		if err := writeHosts(filepath.Join(c.Dir, "hosts"), r.Addr); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "config.toml"), []byte(containerdConfig(c.Dir, o)), 0o644); err != nil {
		e.t.Fatal(err)
	}
	c.Start()
	return c
}

// containerdConfig is the configuration of a containerd below dir. It keeps every path private.
// restrict_oom_score_adj: without CAP_SYS_RESOURCE no process may lower its score, and pods ask for
// that. A test machine has neither CNI nor AppArmor profiles of containerd's.
func containerdConfig(dir string, o ContainerdOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version = 3\nroot = %q\nstate = %q\n", dir+"/root", dir+"/state")
	if o.Import != "" {
		fmt.Fprintf(&b, "imports = [%q]\n", o.Import)
	}
	fmt.Fprintf(&b, "[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n", dir+"/c.sock", dir+"/t.sock")
	fmt.Fprintf(&b, `
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      Root = %[1]q
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[2]q]
    conf_dir = %[2]q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %[3]q
`, dir+"/runc", dir+"/cni", dir+"/hosts")
	if o.Import == "" {
		fmt.Fprintf(&b, "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = %q\n", o.Snapshotter)
	}
	if o.Sandbox != "" {
		fmt.Fprintf(&b, "[plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = %q\n", o.Sandbox)
	}
	if o.Snapshotter == "native" { // not among containerd's defaults
		b.WriteString("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n    platform = \"linux\"\n    " +
			"snapshotter = \"native\"\n")
	}
	fmt.Fprintf(&b, "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n")
	return b.String()
}

// Start starts containerd again after its end and waits until it answers.
func (c *Containerd) Start() {
	c.env.t.Helper()
	c.proc = c.env.Start("containerd", "containerd", "--config", filepath.Join(c.Dir, "config.toml"), "--log-level",
		logLevel())
	deadline := time.Now().Add(30 * time.Second)
	for {
		if !c.proc.Running() {
			c.env.t.Fatalf("containerd ended at once: %s", tail(c.proc.Log, 4000))
		}
		if r := c.ctr("--connect-timeout", "2s", "version"); r.Code == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.env.t.Fatal("containerd does not answer within 30s")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// AwaitPlugin waits until containerd reaches the plugin again after the plugin was down. containerd retries every few
// seconds, and a call that its own database answers would not show it.
func (c *Containerd) AwaitPlugin() {
	c.env.t.Helper()
	key := c.env.Name("reach")
	Eventually(c.env.t, 15*time.Second, "containerd reaches the plugin", func() bool {
		return c.ctr("snapshots", "--snapshotter", c.Snapshotter, "prepare", key).Code == 0
	})
	c.Ctr("snapshots", "--snapshotter", c.Snapshotter, "rm", key)
}

// Process is the running containerd.
func (c *Containerd) Process() *Process { return c.proc }

// Kill9 kills containerd; its shims and containers stay.
func (c *Containerd) Kill9() { c.proc.Kill9() }

func (c *Containerd) ctr(args ...string) Result {
	c.env.t.Helper()
	return c.env.Run(c.ctrArgs(args...)...)
}

func (c *Containerd) ctrArgs(args ...string) []string {
	return append([]string{"ctr", "--address", c.Socket, "--namespace", c.Namespace}, args...)
}

// Ctr runs ctr, which has to succeed, and returns its stdout.
func (c *Containerd) Ctr(args ...string) string {
	c.env.t.Helper()
	return mustSucceed(c.env.t, c.ctr(args...))
}

// CtrResult runs ctr, whatever its exit code.
func (c *Containerd) CtrResult(args ...string) Result {
	c.env.t.Helper()
	return c.ctr(args...)
}

func (c *Containerd) pullArgs(ref string) []string {
	return []string{"images", "pull", "--hosts-dir", filepath.Join(c.Dir, "hosts"), "--snapshotter", c.Snapshotter, ref}
}

// Pull pulls ref by the transfer service, as ctr does by default.
func (c *Containerd) Pull(ref string) {
	c.env.t.Helper()
	c.Ctr(c.pullArgs(ref)...)
}

// StartPull starts a pull and does not wait for it.
func (c *Containerd) StartPull(ref string) *Process {
	c.env.t.Helper()
	return c.env.Start("ctr-pull", c.ctrArgs(c.pullArgs(ref)...)...)
}

// Mount mounts an image and returns the mount point.
func (c *Containerd) Mount(ref string) string {
	c.env.t.Helper()
	dir := c.env.Path("mnt-" + randomHex(3))
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.env.t.Fatal(err)
	}
	c.Ctr("images", "mount", "--snapshotter", c.Snapshotter, ref, dir)
	return dir
}

// Unmount undoes Mount and removes its snapshot.
func (c *Containerd) Unmount(dir string) {
	c.env.t.Helper()
	c.Ctr("images", "unmount", "--rm", "--snapshotter", c.Snapshotter, dir)
}

// RunArgs are the arguments of ctr for a container from ref on private paths.
func (c *Containerd) runArgs(flags []string, ref, id string, args ...string) []string {
	a := []string{"run", "--snapshotter", c.Snapshotter, "--runc-root", filepath.Join(c.Dir, "runc"),
		"--fifo-dir", filepath.Join(c.Dir, "fifo")}
	a = append(append(append(a, c.runFlags...), flags...), ref, id)
	return append(a, args...)
}

// Run runs a container to its end and returns what it printed.
func (c *Containerd) Run(ref, id string, args ...string) string {
	c.env.t.Helper()
	return c.Ctr(c.runArgs([]string{"--rm"}, ref, id, args...)...)
}

// RunDetached starts a container whose output goes to the returned file, and returns its pid on the host.
func (c *Containerd) RunDetached(ref, id string, args ...string) (pid int, log string) {
	c.env.t.Helper()
	log = c.env.Path("log", id+".out")
	c.Ctr(c.runArgs([]string{"--detach", "--log-uri", "file://" + log}, ref, id, args...)...)
	for line := range strings.Lines(c.Ctr("tasks", "ls")) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == id {
			if _, err := fmt.Sscan(f[1], &pid); err == nil {
				return pid, log
			}
		}
	}
	c.env.t.Fatalf("container %s has no task", id)
	return 0, ""
}

// RemoveContainer ends a detached container and removes it with its snapshot.
func (c *Containerd) RemoveContainer(id string) {
	c.env.t.Helper()
	c.Ctr("tasks", "rm", "--force", id)
	c.Ctr("containers", "rm", id)
}

// RemoveImage removes an image and waits for containerd's collector.
func (c *Containerd) RemoveImage(ref string) {
	c.env.t.Helper()
	c.Ctr("images", "rm", "--sync", ref)
}

// Stop ends containerd gracefully.
func (c *Containerd) Stop() { c.proc.Stop() }
