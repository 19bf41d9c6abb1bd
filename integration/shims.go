package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// shim is one containerd-shim-runc-v2: it and its containers leave the process tree of the containerd
// that started it, so it is known by the argument -address, which is a socket below a directory of ours
// and nobody else's.
type shim struct {
	pid       int
	namespace string
	id        string
	address   string
}

// shimsBelow lists the running shims of the containerds whose socket lies below dir.
func shimsBelow(dir string) []shim {
	var found []shim
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if filepath.Base(args[0]) != "containerd-shim-runc-v2" {
			continue
		}
		s := shim{}
		s.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(name)))
		for i := 1; i+1 < len(args); i++ {
			switch args[i] {
			case "-address":
				s.address = args[i+1]
			case "-namespace":
				s.namespace = args[i+1]
			case "-id":
				s.id = args[i+1]
			}
		}
		if strings.HasPrefix(s.address, dir+"/") {
			found = append(found, s)
		}
	}
	return found
}

// EndContainers kills the containers of every containerd of this environment, with their shims.
func (e *Env) EndContainers() error { return endShims(e.Dir) }

// endShims kills the shims of the containerds below dir with their containers.
func endShims(dir string) error {
	var errs []error
	var pids []int
	for _, s := range shimsBelow(dir) {
		pids = append(pids, children(s.pid)...) // containers' first processes; their death ends their pid namespaces
		pids = append(pids, s.pid)
	}
	for i := len(pids) - 1; i >= 0; i-- { // a shim before its containers, so that it reports to nobody
		if err := unix.Kill(pids[i], unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill %d: %w", pids[i], err))
		}
	}
	for _, pid := range pids {
		if err := awaitEnd(pid); err != nil {
			errs = append(errs, err)
		}
	}
	removeShimSockets(dir)
	return errors.Join(errs...)
}

func awaitEnd(pid int) error {
	for range 500 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") { // a zombie waits for its new parent only
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d survives SIGKILL", pid)
}

// children lists the direct children of a process.
func children(pid int) []int {
	var kids []int
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range names {
		b, _ := os.ReadFile(name)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				kids = append(kids, n)
			}
		}
	}
	return kids
}

// removeShimSockets removes the sockets that killed shims left in containerd's default state directory:
// each bundle below dir records its own.
func removeShimSockets(dir string) {
	for _, pattern := range []string{"*/address", "*/bootstrap.json"} {
		names, _ := filepath.Glob(filepath.Join(dir, "*", "state", "io.containerd.runtime.v2.task", "*", pattern))
		for _, name := range names {
			b, _ := os.ReadFile(name)
			_, rest, ok := strings.Cut(string(b), "unix://")
			if !ok {
				continue
			}
			sock, _, _ := strings.Cut(strings.TrimSpace(rest), `"`)
			if strings.HasPrefix(sock, "/run/containerd/s/") {
				_ = os.Remove(sock)
			}
		}
	}
}

// mountsBelow lists the mount points below dir, deepest first.
func mountsBelow(dir string) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			if p := unescapeMount(f[4]); p == dir || strings.HasPrefix(p, dir+"/") {
				points = append(points, p)
			}
		}
	}
	sort.SliceStable(points, func(i, j int) bool { return len(points[i]) > len(points[j]) })
	return points
}

// UnmountFrom unmounts what is mounted below dir, and every overlay that has a directory below dir as a layer.
func UnmountFrom(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		p := unescapeMount(f[4])
		if strings.HasPrefix(p, dir+"/") || strings.Contains(line, " overlay ") && strings.Contains(line, "="+dir+"/") {
			points = append(points, p)
		}
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}

// unescapeMount undoes the octal escapes of /proc/*/mountinfo.
func unescapeMount(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out, i = append(out, byte(n)), i+3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func unmountBelow(dir string) error {
	var errs []error
	for range 4 { // several mounts may be stacked on one point
		points := mountsBelow(dir)
		if len(points) == 0 {
			return nil
		}
		for _, p := range points {
			if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes the empty cgroups whose path begins with /stem in every hierarchy: containers'
// cgroups lie below their namespace's name or their pod's parent, which an Env names after its
// directory.
func removeCgroups(stem string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		tops, _ := filepath.Glob(pattern + stem + "*")
		for _, top := range tops {
			removeCgroup(top)
		}
	}
}

func removeCgroup(dir string) {
	names, _ := os.ReadDir(dir)
	for _, n := range names {
		if n.IsDir() {
			removeCgroup(filepath.Join(dir, n.Name()))
		}
	}
	_ = os.Remove(dir) // rmdir, which refuses a cgroup that is used
}
