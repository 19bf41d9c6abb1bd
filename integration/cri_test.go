package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inCRI returns c for ctr commands in the namespace of CRI.
func (c *Containerd) inCRI() *Containerd { return c.in("k8s.io") }

// podConfig returns the config of a pod with host network.
func (k *CRI) podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: k.c.env.Name(name), Namespace: "default"},
		LogDirectory: k.c.env.Path("log"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: k.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}},
		},
	}
}

// runPodAs starts a pod with a runtime handler and returns its id. An empty handler is the default.
func (k *CRI) runPodAs(t *testing.T, handler string, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("CRI: pod %s: %v", config.Metadata.Name, err)
	}
	return r.PodSandboxId
}

// pullFor pulls as a kubelet does for a pod with a runtime handler.
func (k *CRI) pullFor(t *testing.T, handler, ref string, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Images.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: handler}, SandboxConfig: config,
	})
	if err != nil {
		t.Fatalf("CRI: pull %s for %q: %v", ref, handler, err)
	}
	return r.ImageRef
}

// printed runs a container, which must succeed, and returns its output.
func (k *CRI) printed(t *testing.T, pod string, config *runtimeapi.PodSandboxConfig, name, image string,
	args ...string) string {
	t.Helper()
	id := k.StartContainer(pod, config, name, image, args...)
	code := k.Await(id)
	var out []string
	for line := range strings.Lines(string(tail(k.c.env.Path("log", name+".cri"), 4000))) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4); len(f) == 4 {
			out = append(out, f[3])
		}
	}
	if code != 0 {
		t.Errorf("container %s ended with %d: %q", name, code, out)
	}
	return strings.Join(out, "\n")
}

// filesystem returns the bytes that CRI reports as used in the image file system at root.
func (k *CRI) filesystem(t *testing.T, root string) (used uint64) {
	t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.ImageFilesystems {
		if f.FsId.Mountpoint == root {
			return f.UsedBytes.Value
		}
	}
	t.Fatalf("no statistics about %s: %v", root, r.ImageFilesystems)
	return 0
}

// diskUsage returns the bytes of the regular files below these directories of the root.
func (k *TankRoot) diskUsage(t *testing.T, dirs ...string) (total int64) {
	t.Helper()
	for _, d := range dirs {
		if err := filepath.WalkDir(filepath.Join(k.Root, d), func(_ string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil // being deleted
			}
			if fi, ierr := e.Info(); err == nil && ierr == nil && fi.Mode().IsRegular() {
				total += fi.Size()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return total
}

// newCRINode returns a node on which containerd collects the kubelet's statistics every second.
func newCRINode(t *testing.T, e *Env) (*TankRoot, *Containerd, *Registry) {
	t.Helper()
	r := e.NewRegistry()
	r.PushPause()
	k := e.NewTank()
	dropIn := k.DropIn()
	k.replaceIn(dropIn, "[plugins.'io.containerd.cri.v1.images']\n",
		"[plugins.'io.containerd.cri.v1.images']\n  stats_collect_period = 1\n")
	k.Serve()
	return k, e.NewContainerd(
		ContainerdOptions{Import: dropIn, Snapshotter: "tank", Registries: []*Proxy{r.Proxy}, Sandbox: PauseRef}), r
}

// TestImageFilesystem: the pause image is in Tank as well. The kubelet's statistics of the image
// file system grow with a pull and shrink with a removal, which frees the disk at once.
func TestImageFilesystem(t *testing.T) {
	t.Parallel()
	e := New(t)
	k, c, r := newCRINode(t, e)
	const size = 20 << 20
	big, _ := smallImage(t, []Entry{file("big", 0o644, noise(1, size))})
	r.PushBuilt(big, "test/big:1")
	ref := TestRegistry + "/test/big:1"
	cri := c.CRI()
	pod, config := cri.RunPod("pod")
	if out := c.inCRI().Ctr("snapshots", "--snapshotter", "tank", "ls"); !strings.Contains(out, pod) {
		t.Errorf("the sandbox has no snapshot in Tank: %s", out)
	}
	ctx, cancel := cri.context()
	defer cancel()
	status, err := cri.Images.ImageStatus(ctx,
		&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: PauseRef}})
	if err != nil || status.Image == nil || !status.Image.Pinned {
		t.Errorf("the pause image has to be pinned: status %v, error %v", status, err)
	}

	before, onDisk := cri.filesystem(t, k.Root), k.diskUsage(t, ".")
	image := cri.Pull(ref)
	Eventually(t, 20*time.Second, "the pull is counted", func() bool { return cri.filesystem(t, k.Root) > before+size })
	if got := cri.printed(t, pod, config, "one", image); got != strings.TrimSpace(helloText) {
		t.Errorf("printed %q", got)
	}
	counted := cri.filesystem(t, k.Root)
	cri.RemovePod(pod)
	cri.RemoveImage(ref)
	if left := k.diskUsage(t, "layers", "snapshots", "staging"); left > onDisk {
		t.Errorf("right after the removal %d bytes are unpacked; before the pull the whole root had %d", left, onDisk)
	}
	Eventually(t, 2*time.Second, "the blobs are gone", func() bool { return k.diskUsage(t, ".") <= onDisk+(1<<20) })
	Eventually(t, 20*time.Second, "the removal is counted",
		func() bool { return cri.filesystem(t, k.Root) < counted-size })
}

// TestPerRuntime: overlayfs is CRI's default, and one runtime handler has Tank as its snapshotter. The images and
// containers of each handler's pods are in that handler's snapshotter only.
func TestPerRuntime(t *testing.T) {
	t.Parallel()
	e := New(t)
	r := e.NewRegistry()
	r.PushPause()
	k := e.NewTank()
	dropIn := k.DropIn()
	k.replaceIn(dropIn, "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"tank\"\n",
		fmt.Sprintf(`[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.runtime_platforms.tank]
    platform = "linux/amd64"
    snapshotter = "tank"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.tank]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "tank"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.tank.options]
    Root = %q
`, e.Path("c", "runc")))
	k.Serve()
	c := e.NewContainerd(
		ContainerdOptions{Import: dropIn, Snapshotter: "tank", Registries: []*Proxy{r.Proxy}, Sandbox: PauseRef})
	img, _ := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
	r.PushBuilt(img, "test/it:1")
	ref := TestRegistry + "/test/it:1"
	cri, node := c.CRI(), c.inCRI()
	has := func(snapshotter, name string) bool {
		t.Helper()
		return strings.Contains(node.Ctr("snapshots", "--snapshotter", snapshotter, "ls"), name)
	}
	top := topSnapshot(img.Image)

	config := cri.podConfig("on-tank")
	image := cri.pullFor(t, "tank", ref, config)
	if !has("tank", top) || has("overlayfs", top) {
		t.Errorf("pulled for the handler tank: unpacked in tank: %v, in overlayfs: %v", has("tank", top),
			has("overlayfs", top))
	}
	pod := cri.runPodAs(t, "tank", config)
	if !has("tank", pod) || has("overlayfs", pod) {
		t.Errorf("the sandbox with the handler tank is in tank: %v, in overlayfs: %v", has("tank", pod),
			has("overlayfs", pod))
	}
	if got := cri.printed(t, pod, config, "on-tank", image, "/usr/bin/hello", "cat", "/etc/one"); got != "one" {
		t.Errorf("printed %q", got)
	}
	plain := cri.podConfig("on-overlayfs")
	image = cri.pullFor(t, "", ref, plain)
	if !has("overlayfs", top) {
		t.Error("pulled without a handler, and not unpacked in overlayfs")
	}
	other := cri.runPodAs(t, "", plain)
	if got := cri.printed(t, other, plain, "on-overlayfs", image, "/usr/bin/hello", "cat", "/etc/one"); got != "one" {
		t.Errorf("printed %q", got)
	}
	cri.RemovePod(pod)
	cri.RemovePod(other)
	cri.RemoveImage(ref)
	if has("tank", top) || has("overlayfs", top) {
		t.Error("snapshots of the image are left after its removal")
	}
}

// fakeCNI is a network plugin that makes no network and returns an address, which is all that CRI needs.
const fakeCNI = `#!/bin/sh
cat > /dev/null
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.88.0.2/16","interface":0}]}' ;;
esac
`

// TestPodUserNamespace: a pod with hostUsers: false has ids of its own. It uses the same layers as other pods: they are
// id-mapped and not copied.
func TestPodUserNamespace(t *testing.T) {
	t.Parallel()
	e := New(t)
	// the mapped root user has to reach the bundle
	if err := errors.Join(os.Chmod(e.Dir, 0o711), os.Mkdir(e.Path("c"), 0o711)); err != nil {
		t.Fatal(err)
	}
	cni := e.Path("c", "cni")
	writeFiles(t, cni, map[string][]byte{
		"10-fake.conflist": []byte(`{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"fake"}]}`),
		"fake":             []byte(fakeCNI), "loopback": []byte(fakeCNI),
	})
	for _, name := range []string{"fake", "loopback"} {
		if err := os.Chmod(filepath.Join(cni, name), 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	k, c, r := newCRINode(t, e)
	img, _ := smallImage(t,
		[]Entry{file("etc/one", 0o644, "one\n"), file("etc/of-three", 0o600, "three\n", owner(3, 4))})
	r.PushBuilt(img, "test/it:1")
	cri := c.CRI()
	image := cri.Pull(TestRegistry + "/test/it:1")
	config := cri.podConfig("mapped")
	ids := []*runtimeapi.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
	config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
		UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids},
	}
	pod := cri.runPodAs(t, "", config)
	inSandbox := func(args ...string) string {
		t.Helper()
		exec := []string{"tasks", "exec", "--exec-id", e.Name("exec"), "--fifo-dir", filepath.Join(c.Dir, "fifo"), pod,
			"/pause"}
		return c.inCRI().Ctr(append(exec, args...)...)
	}
	if out := inSandbox("cat", "/proc/self/uid_map"); strings.Join(strings.Fields(out), " ") != "0 200000 65536" {
		t.Errorf("the sandbox's ids are not mapped: %q", out)
	}
	if out := inSandbox("stat", "/", "/pause"); out != "/ 0 0 drwxr-xr-x\n/pause 0 0 -rwxr-xr-x\n" {
		t.Errorf("in the sandbox: %q", out)
	}
	layers := k.LayerInodes(t)
	// runc 1.2 and newer map ids of volumes, which containerd requires for containers in such a pod.
	if features := e.MustRun("runc", "features"); strings.Contains(features, "idmap") {
		checkMappedContainer(t, cri, pod, config, image)
	} else {
		t.Log("runc maps no ids of volumes, so containerd makes no container in such a pod: containers are not tested")
	}
	k.kept(t, "under a mapped pod", nil, layers)
	if now := k.LayerInodes(t); len(now) != len(layers) {
		t.Errorf("%d paths below layers/ instead of %d", len(now), len(layers))
	}
	cri.RemovePod(pod)
}

// checkMappedContainer checks which ids programs see that run in a pod with a user namespace.
func checkMappedContainer(t *testing.T, cri *CRI, pod string, config *runtimeapi.PodSandboxConfig, image string) {
	t.Helper()
	run := func(name string, args ...string) string {
		t.Helper()
		ctx, cancel := cri.context()
		defer cancel()
		made, err := cri.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: pod, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: image},
				Args: args, LogPath: name + ".cri",
				Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions,
				}},
			},
		})
		if err == nil {
			_, err = cri.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
		}
		if err != nil {
			t.Fatalf("CRI: container %s: %v", name, err)
		}
		if code := cri.Await(made.ContainerId); code != 0 {
			t.Errorf("container %s ended with %d", name, code)
		}
		return string(tail(cri.c.env.Path("log", name+".cri"), 4000))
	}
	if out := run("map", "/usr/bin/hello", "cat",
		"/proc/self/uid_map"); !strings.Contains(strings.Join(strings.Fields(out), " "), "0 200000 65536") {
		t.Errorf("the container's ids are not mapped: %q", out)
	}
	for name, want := range map[string]string{"/": "/ 0 0", "/etc/one": "/etc/one 0 0",
		"/etc/of-three": "/etc/of-three 3 4", "/usr/bin/hello": "/usr/bin/hello 0 0"} {
		if out := run("stat"+strings.ReplaceAll(name, "/", "-"), "/usr/bin/hello", "stat", name); !strings.Contains(out,
			want+" ") {
			t.Errorf("want %q in the container: %q", want, out)
		}
	}
	run("write", "/usr/bin/hello", "write", "/etc/of-three", "changed")
}
