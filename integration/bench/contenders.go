package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// run is one pull of one contender, into a file system of its own.
type run struct {
	*bench
	dir     string
	daemons []*daemon
}

// contender is one way to pull an image and have it unpacked.
type contender struct {
	name    string // in flags
	title   string // in the table
	needs   []string
	prepare func(*run) error // before the clock starts: daemons
	pull    func(*run, *meter) error
	check   func(*run) error // after the clock stopped; may be nil
}

func contenders() []contender {
	none := func(*run) error { return nil }
	return []contender{
		{"tank", "Tank `--no-sync`", []string{"tank"}, none, tankPull("--no-sync"), checkTank},
		{"tank-durable", "Tank", []string{"tank"}, none, tankPull(), checkTank},
		{"tank-containerd", "Tank under containerd", []string{"tank"}, startTankNode, ctrPull("tank"), nil},
		{"crane", "crane export, tar x", []string{"crane", "tar"}, none, cranePull, func(r *run) error { return r.compare(r.path("rootfs")) }},
		{"overlayfs", "containerd, overlayfs, default", []string{"containerd"}, node("overlayfs", "", true), ctrPull("overlayfs"), nil},
		{
			"overlayfs-tuned", "containerd, overlayfs, 4 unpacks", []string{"containerd"},
			node("overlayfs", "[plugins.'io.containerd.transfer.v1.local']\n  max_concurrent_unpacks = 4\n", false), ctrPull("overlayfs"), nil,
		},
		{
			"native", "containerd, native", []string{"containerd"},
			node("native", "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"native\"\n", true),
			ctrPull("native"), nil,
		},
		{
			"umoci", "skopeo copy, umoci unpack", []string{"skopeo", "umoci"}, none, umociPull,
			func(r *run) error { return r.compare(r.path("bundle", "rootfs")) },
		},
	}
}

// selectContenders returns those that are named, or all that can run here. Other builds of Tank are named by their name.
func selectContenders(o options, p programs) ([]contender, error) {
	var picked []contender
	all, names := contenders(), o.only
	for build := range strings.SplitSeq(o.builds, ",") {
		name, path, ok := strings.Cut(build, "=")
		if !ok {
			continue
		}
		p[name] = path
		all = append(all, contender{
			name, "Tank `--no-sync`, " + name, []string{name}, func(*run) error { return nil }, pullWith(name, "--no-sync"), checkTank,
		})
		if names != "" {
			names += "," + name
		}
	}
	for _, c := range all {
		if names != "" && !slices.Contains(strings.Split(names, ","), c.name) {
			continue
		}
		missing := slices.DeleteFunc(slices.Clone(c.needs), func(n string) bool { return p[n] != "" })
		switch {
		case len(missing) == 0:
			picked = append(picked, c)
		case names != "":
			return nil, fmt.Errorf("%s needs %s in PATH", c.name, strings.Join(missing, " and "))
		default:
			fmt.Fprintf(os.Stderr, "left out: %s, which needs %s in PATH\n", c.name, strings.Join(missing, " and "))
		}
	}
	if len(picked) == 0 || names != "" && len(picked) != len(strings.Split(names, ",")) {
		var known []string
		for _, c := range all {
			known = append(known, c.name)
		}
		return nil, fmt.Errorf("contenders are %s", strings.Join(known, ", "))
	}
	return picked, nil
}

func (r *run) path(names ...string) string {
	return filepath.Join(append([]string{r.dir}, names...)...)
}

func (r *run) ref() string { return r.reg.addr + "/" + repository }

// command is a command that ends with the program, in surroundings that are the same everywhere.
func (r *run) command(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.ctx, r.progs[program], args...)
	cmd.Env = r.environ()
	return cmd
}

func (r *run) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.path("home"), "TMPDIR=" + r.dir}
}

func (r *run) startDaemon(name string, env []string, program string, args ...string) (*daemon, error) {
	cmd := exec.Command(r.progs[program], args...)
	cmd.Env = append(append(r.environ(), "OTEL_TRACES_EXPORTER=none"), env...)
	d, err := startDaemon(cmd, filepath.Join(r.bench.dir, name+".log"))
	if err == nil {
		r.daemons = append(r.daemons, d)
	}
	return d, err
}

// endDaemons ends what was started last first.
func (r *run) endDaemons() {
	for _, d := range slices.Backward(r.daemons) {
		d.end()
	}
}

func tankPull(flags ...string) func(*run, *meter) error { return pullWith("tank", flags...) }

func pullWith(build string, flags ...string) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		args := append([]string{"pull", "--root", r.path("root"), "--progress", "none"}, flags...)
		return m.pipe(r.command(build, append(args, r.ref())...))
	}
}

func checkTank(r *run) error {
	dirs, err := filepath.Glob(r.path("root", "rootfs", "sha256", "*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if fi, err := os.Stat(d); err == nil && fi.IsDir() {
			return r.compare(d)
		}
	}
	return errors.New("no rootfs")
}

func cranePull(r *run, m *meter) error {
	if err := os.Mkdir(r.path("rootfs"), 0o755); err != nil {
		return err
	}
	return m.pipe(
		r.command("crane", "export", r.ref(), "-"),
		r.command("tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", r.path("rootfs")),
	)
}

func umociPull(r *run, m *meter) error {
	err := m.pipe(r.command("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://"+r.ref(),
		"oci:"+r.path("layout")+":latest"))
	if err != nil {
		return err
	}
	return m.pipe(r.command("umoci", "unpack", "--image", r.path("layout")+":latest", r.path("bundle")))
}

// node starts a containerd with a piece of configuration. plain keeps it from decompressing with igzip or unpigz, which a
// machine has only if somebody installed them.
func node(snapshotter, extra string, plain bool) func(*run) error {
	return func(r *run) error {
		var env []string
		if plain {
			env = []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}
		}
		return r.startContainerd("", extra, env)
	}
}

// startTankNode starts Tank's daemon and a containerd with the drop-in that Tank prints.
func startTankNode(r *run) error {
	socket, root := r.path("tank.sock"), r.path("tank")
	if err := os.WriteFile(r.path("tank.toml"), nil, 0o644); err != nil {
		return err
	}
	d, err := r.startDaemon("tank", nil, "tank", "serve", "--root", root, "--address", socket, "--config", r.path("tank.toml"), "--log-level", "warn")
	if err != nil {
		return err
	}
	if err := d.await(r.ctx, listens(socket)); err != nil {
		return err
	}
	out, err := r.command("tank", "config", "containerd", "--root", root, "--address", socket).Output()
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.path("dropin.toml"), out, 0o644); err != nil {
		return err
	}
	return r.startContainerd(r.path("dropin.toml"), "", nil)
}

func (r *run) startContainerd(drop, extra string, env []string) error {
	dir := r.path("c")
	hosts := filepath.Join(dir, "hosts", r.reg.addr)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.reg.addr)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644); err != nil {
		return err
	}
	config := fmt.Sprintf("version = 3\nroot = \"%[1]s/root\"\nstate = \"%[1]s/state\"\n", dir)
	if drop != "" {
		config += fmt.Sprintf("imports = [%q]\n", drop)
	}
	config += fmt.Sprintf("[grpc]\n  address = \"%[1]s/c.sock\"\n[ttrpc]\n  address = \"%[1]s/t.sock\"\n", dir)
	config += "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n" + extra
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o644); err != nil {
		return err
	}
	d, err := r.startDaemon("containerd", env, "containerd", "--config", filepath.Join(dir, "config.toml"), "--log-level", "warn")
	if err != nil {
		return err
	}
	return d.await(r.ctx, func() bool {
		return r.command("ctr", "--address", dir+"/c.sock", "--connect-timeout", "2s", "version").Run() == nil
	})
}

// ctrPull pulls by the transfer service, as ctr does by default.
func ctrPull(snapshotter string) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		return m.pipe(r.command("ctr", "--address", r.path("c", "c.sock"), "images", "pull", "--hosts-dir", r.path("c", "hosts"),
			"--snapshotter", snapshotter, r.ref()))
	}
}

// compare says so when a rootfs is not what the first contender made.
func (r *run) compare(dir string) error {
	h := sha256.New()
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		size, links, time, target := st.Size, uint64(st.Nlink), st.Mtim.Sec, ""
		switch fi.Mode().Type() {
		case fs.ModeDir:
			size, links, time = 0, 0, 0 // peers differ in the times of directories
		case fs.ModeSymlink:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		n++
		fmt.Fprintf(h, "%s %o %d:%d %d %d %d %q\n", path[len(dir):], st.Mode, st.Uid, st.Gid, size, links, time, target)
		return nil
	})
	if err != nil {
		return err
	}
	tree := fmt.Sprintf("%d entries, %x", n, h.Sum(nil)[:8])
	if r.tree == "" {
		r.tree = tree
	}
	if r.tree != tree {
		fmt.Fprintf(os.Stderr, "warning: the tree is another than the first contender's: %s, first %s\n", tree, r.tree)
	}
	return nil
}
