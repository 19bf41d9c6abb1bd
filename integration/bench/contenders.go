package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// contender is one way to pull an image and have it unpacked.
type contender struct {
	name    string // in flags
	title   string // in the table
	needs   []string
	prepare func(*run) error // before the clock starts: daemons
	pull    func(*run, *meter) error
	tree    func(*run) (string, error) // after the clock stopped: where the root filesystem is to be seen
}

func contenders() []contender {
	tank, node := []string{"tank"}, []string{"containerd"}
	return []contender{
		{"tank", "Tank `--no-sync`", tank, noDaemon, tankPull("tank", "--no-sync"), tankTree},
		{"tank-durable", "Tank", tank, noDaemon, tankPull("tank"), tankTree},
		{"tank-containerd", "Tank under containerd", tank, tankNode(""), ctrPull("tank"), mounted("tank", "default")},
		{"tank-cri", "Tank under containerd, CRI", tank, tankNode(""), criPull, mounted("tank", "k8s.io")},
		{
			"tank-directory", "Tank in directory mode, and Prepare", tank,
			tankNode("mode = \"directory\"\n"), then(ctrPull("tank"), ctrPrepare("tank")), mounted("tank", "default"),
		},
		{"crane", "crane export, tar x", []string{"crane", "tar"}, noDaemon, cranePull, at("rootfs")},
		{"overlayfs", "containerd, overlayfs, default", node, peerNode("", plain), ctrPull("overlayfs"),
			mounted("overlayfs", "default")},
		{
			"overlayfs-tuned", "containerd, overlayfs, 4 unpacks", node,
			peerNode("[plugins.'io.containerd.transfer.v1.local']\n  max_concurrent_unpacks = 4\n", nil),
			ctrPull("overlayfs"), mounted("overlayfs", "default"),
		},
		{"overlayfs-cri", "containerd, overlayfs, CRI, default", node, peerNode("", plain), criPull,
			mounted("overlayfs", "k8s.io")},
		{
			"native", "containerd, native, and Prepare", node,
			peerNode("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = \"linux\"\n  "+
				"snapshotter = \"native\"\n", plain),
			then(ctrPull("native"), ctrPrepare("native")), mounted("native", "default"),
		},
		{"umoci", "skopeo copy, umoci unpack", []string{"skopeo", "umoci"}, noDaemon, umociPull,
			at("bundle", "rootfs")},
	}
}

// selectContenders returns the named contenders. It leaves out those that cannot run here, with a message.
// Other builds of Tank come last.
func selectContenders(only []string, builds string, p programs) ([]contender, error) {
	all, names := contenders(), slices.Clone(only)
	for build := range strings.SplitSeq(builds, ",") {
		name, path, ok := strings.Cut(build, "=")
		if !ok {
			continue
		}
		p[name] = path
		names = append(names, name)
		all = append(all,
			contender{name, "Tank `--no-sync`, " + name, []string{name}, noDaemon, tankPull(name, "--no-sync"),
				tankTree})
	}
	var picked []contender
	for _, name := range names {
		i := slices.IndexFunc(all, func(c contender) bool { return c.name == name })
		if i < 0 {
			var known []string
			for _, c := range all {
				known = append(known, c.name)
			}
			return nil, fmt.Errorf("contender %q: they are %s", name, strings.Join(known, ", "))
		}
		missing := slices.DeleteFunc(slices.Clone(all[i].needs), func(n string) bool { return p[n] != "" })
		if len(missing) > 0 {
			fmt.Fprintf(os.Stderr, "left out: %s, which needs %s in PATH\n", name, strings.Join(missing, " and "))
			continue
		}
		picked = append(picked, all[i])
	}
	if len(picked) == 0 {
		return nil, fmt.Errorf("none of %s can run here", strings.Join(names, ", "))
	}
	return picked, nil
}

func noDaemon(*run) error { return nil }

func then(first, second func(*run, *meter) error) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		if err := first(r, m); err != nil {
			return err
		}
		return second(r, m)
	}
}

// at is a root filesystem in the directory of its tag.
func at(names ...string) func(*run) (string, error) {
	return func(r *run) (string, error) { return r.path(append([]string{r.tag}, names...)...), nil }
}

// run is one pull of one contender, into a file system of its own.
type run struct {
	*bench
	*source
	dir     string
	tag     string // of the image that is pulled
	daemons []*daemon
}

func (r *run) path(names ...string) string {
	return filepath.Join(append([]string{r.dir}, names...)...)
}

func (r *run) ref() string { return r.reg.addr + "/" + repository + ":" + r.tag }

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

func tankPull(build string, flags ...string) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		args := append([]string{"pull", "--root", r.path("root"), "--progress", "none"}, flags...)
		return m.pipe(r.command(build, append(args, r.ref())...))
	}
}

func tankTree(r *run) (string, error) {
	return r.path("root", "rootfs", r.Manifest.Algorithm().String(), r.Manifest.Encoded()), nil
}

// cranePull keeps nothing but the root filesystem.
func cranePull(r *run, m *meter) error {
	dir := r.path(r.tag, "rootfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return m.pipe(
		r.command("crane", "export", r.ref(), "-"),
		r.command("tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir),
	)
}

// umociPull keeps the blobs in a layout.
func umociPull(r *run, m *meter) error {
	if err := os.MkdirAll(r.path(r.tag), 0o755); err != nil {
		return err
	}
	layout := r.path("layout") + ":" + r.tag
	err := m.pipe(
		r.command("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://"+r.ref(),
			"oci:"+layout))
	if err != nil {
		return err
	}
	return m.pipe(r.command("umoci", "unpack", "--image", layout, r.path(r.tag, "bundle")))
}
