package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// TankRoot is Tank's binary with a root of its own: a private one until Serve makes it a daemon's.
type TankRoot struct {
	env    *Env
	Root   string
	Socket string // of the daemon
	Config string // text of the daemon's config file
	AsUnit bool   // the daemon may do only what its unit for systemd allows
	// Descriptors is how many the daemon may have. 0: what the test has.
	Descriptors int
	Env         []string // variables of the daemon, as NAME=VALUE
	bin         string
	daemon      *Process
	broken      bool
}

// NewTank makes an empty root. When the test has passed, `check` has to find the root without a fault.
func (e *Env) NewTank() *TankRoot {
	e.t.Helper()
	bin, err := Tank()
	if err != nil {
		e.t.Fatalf("Tank: %v", err)
	}
	name := "t" + randomHex(2)
	k := &TankRoot{env: e, Root: e.Path(name), Socket: e.Path(name + ".sock"), bin: bin}
	t := e.t
	t.Cleanup(func() {
		if t.Failed() || k.broken {
			return
		}
		if _, err := os.Stat(k.Root); err != nil {
			return
		}
		if r := k.Run("check"); r.Code != 0 {
			t.Errorf("after the test: %s", r)
		}
	})
	return k
}

// Args are the arguments of Tank's binary for a command on this root.
func (k *TankRoot) Args(command string, args ...string) []string {
	return append([]string{k.bin, command, "--root", k.Root}, args...)
}

// Run runs a command of Tank on this root.
func (k *TankRoot) Run(command string, args ...string) Result {
	k.env.t.Helper()
	return k.env.Run(k.Args(command, args...)...)
}

// Make makes an empty root, as a pull does before it finds nobody at the registry's port.
func (k *TankRoot) Make() {
	k.env.t.Helper()
	if res := k.Run("pull", "--progress", "none", "127.0.0.1:1/none:1"); res.Code != 5 {
		k.env.t.Fatalf("a pull from nobody: %s", res)
	}
}

// MustRun is Run for commands that have to succeed; it returns stdout.
func (k *TankRoot) MustRun(command string, args ...string) string {
	k.env.t.Helper()
	return mustSucceed(k.env.t, k.Run(command, args...))
}

// Pull pulls ref and returns the path of its root filesystem.
func (k *TankRoot) Pull(ref string, flags ...string) string {
	k.env.t.Helper()
	out := k.MustRun("pull", append(flags, "--progress", "none", ref)...)
	path := strings.TrimSuffix(out, "\n")
	if strings.Contains(path, "\n") || !filepath.IsAbs(path) || !strings.HasPrefix(path, k.Root+"/rootfs/") {
		k.env.t.Fatalf("pull printed %q and not just a path below %s/rootfs", out, k.Root)
	}
	return path
}

// StartPull starts a pull and does not wait for it.
func (k *TankRoot) StartPull(ref string, flags ...string) *Process {
	k.env.t.Helper()
	return k.env.Start("pull", k.Args("pull", append(flags, "--progress", "none", ref)...)...)
}

// Serve starts the daemon, or starts it again, and waits until it answers.
func (k *TankRoot) Serve() *Process {
	k.env.t.Helper()
	argv := []string{k.bin, "serve", "--root", k.Root, "--address", k.Socket, "--log-level", logLevel(),
		"--config", k.ConfigFile()}
	if k.AsUnit {
		argv = append(k.env.unitArgs(), argv...)
	}
	if k.Descriptors > 0 {
		argv = limited(k.Descriptors, argv...)
	}
	if len(k.Env) > 0 {
		argv = slices.Concat([]string{"env"}, k.Env, argv)
	}
	k.daemon = k.env.Start("tank", argv...)
	Eventually(k.env.t, 20*time.Second, "the daemon answers", func() bool {
		if !k.daemon.Running() {
			k.env.t.Fatalf("the daemon ended: %s", tail(k.daemon.Log, 4000))
		}
		c, err := net.Dial("unix", k.Socket)
		if err != nil {
			return false
		}
		_ = c.Close()
		return true
	})
	return k.daemon
}

// ConfigFile writes Config, empty or not: it keeps serve from a configuration that the machine has.
func (k *TankRoot) ConfigFile() string {
	name := k.Root + ".toml"
	if err := os.WriteFile(name, []byte(k.Config), 0o644); err != nil {
		k.env.t.Fatal(err)
	}
	return name
}

// Daemon is the running daemon.
func (k *TankRoot) Daemon() *Process { return k.daemon }

// DropIn writes what `config containerd` prints for this root and returns the file's name.
func (k *TankRoot) DropIn(flags ...string) string {
	k.env.t.Helper()
	args := append(
		[]string{k.bin, "config", "containerd", "--config", k.ConfigFile(), "--root", k.Root, "--address", k.Socket},
		flags...)
	name := k.env.Path("tank-dropin.toml")
	if err := os.WriteFile(name, []byte(k.env.MustRun(args...)), 0o644); err != nil {
		k.env.t.Fatal(err)
	}
	return name
}

// dropInEnd is the last line of the drop-in.
const dropInEnd = "  default = [\"tank-diff\", \"walking\"]\n"

// directoryMode is Tank's config for it.
const directoryMode = "mode = \"directory\"\n"

// Setup is the way in which a node uses Tank. The zero value is the printed drop-in: full install, parallel, overlay.
type Setup struct {
	WithoutContent bool // the second install: containerd keeps its own content store
	Sequential     bool // one layer of a pull is unpacked at a time
	Directory      bool // Tank's mode = "directory"
	NoLabels       bool // containerd does not tell which image an extraction belongs to
	Isolated       bool // containerd's content_sharing_policy = "isolated"
	SkipKnown      bool // Tank's skip_known_blobs = true
	AsUnit         bool // the daemon may do only what its unit for systemd allows
	// Processors are sections [stream_processors] of containerd's config or, with OwnProcessors, of Tank's.
	Processors    string
	OwnProcessors bool
}

// NewNode is a daemon with a containerd that uses it, as on a node, and a registry that both reach.
func (e *Env) NewNode() (*TankRoot, *Containerd, *Registry) {
	e.t.Helper()
	return e.NewNodeAs(Setup{})
}

// NewNodeAs is NewNode in another way.
func (e *Env) NewNodeAs(s Setup) (*TankRoot, *Containerd, *Registry) {
	e.t.Helper()
	r := e.NewRegistry()
	k, c := e.startNode(s, r)
	return k, c, r
}

// startNode starts a daemon and a containerd that reach a registry.
func (e *Env) startNode(s Setup, r *Registry) (*TankRoot, *Containerd) {
	e.t.Helper()
	o := ContainerdOptions{Snapshotter: "tank", Registries: []*Proxy{r.Proxy}, Sandbox: PauseRef}
	k := e.NewTank()
	k.AsUnit = s.AsUnit
	var flags []string
	if s.WithoutContent {
		k.Config += fmt.Sprintf("containerd_address = %q\n", e.containerdSocket(o))
		flags = append(flags, "--without-content")
	}
	if s.SkipKnown {
		k.Config += "skip_known_blobs = true\n"
	}
	if s.Directory {
		k.Config += directoryMode
	}
	if s.OwnProcessors {
		k.Config += s.Processors
	}
	o.Import = k.DropIn(flags...)
	if s.Processors != "" && !s.OwnProcessors {
		k.replaceIn(o.Import, dropInEnd, dropInEnd+s.Processors)
	}
	if s.Sequential {
		k.replaceIn(o.Import, "max_concurrent_unpacks = 4", "max_concurrent_unpacks = 1")
	}
	if s.Isolated {
		const images = "[plugins.'io.containerd.cri.v1.images']"
		k.replaceIn(o.Import, images,
			"[plugins.'io.containerd.metadata.v1.bolt']\n  content_sharing_policy = \"isolated\"\n"+images)
	}
	if s.NoLabels {
		k.replaceIn(o.Import, "enable_remote_snapshot_annotations = \"true\"", "")
	}
	k.Serve()
	return k, e.NewContainerd(o)
}

// replaceIn changes a line that has to be in the file.
func (k *TankRoot) replaceIn(name, old, now string) {
	k.env.t.Helper()
	b, err := os.ReadFile(name)
	if err == nil && strings.Count(string(b), old) != 1 {
		err = fmt.Errorf("%q is not there once", old)
	}
	if err == nil {
		err = os.WriteFile(name, []byte(strings.Replace(string(b), old, now, 1)), 0o644)
	}
	if err != nil {
		k.env.t.Fatalf("%s: %v", name, err)
	}
}

// limited are the arguments that run a program with so many descriptors.
func limited(descriptors int, argv ...string) []string {
	return append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%d", descriptors, descriptors), "--"}, argv...)
}
