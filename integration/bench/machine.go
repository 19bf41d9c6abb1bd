package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// backingText names the file system that the loop file lies on.
func backingText(dir string) string {
	names := map[int64]string{0xef53: "ext4", 0x58465342: "XFS", unix.TMPFS_MAGIC: "tmpfs",
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay"}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && names[st.Type] != "" {
		return names[st.Type]
	}
	return "an unknown file system"
}

// machine describes the CPUs, the memory and the kernel.
func machine() string {
	model := runtime.GOARCH
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	var si unix.Sysinfo_t
	_ = unix.Sysinfo(&si)
	return fmt.Sprintf("%d CPUs (%s), %.0f GB, Linux %s", runtime.NumCPU(), model,
		float64(si.Totalram)*float64(si.Unit)/1e9,
		strings.SplitN(unix.ByteSliceToString(uts.Release[:]), "-", 2)[0])
}

// versions lists the versions of Go and of the peers that are installed.
func versions(p programs) string {
	first := func(program string, args ...string) string {
		if p[program] == "" {
			return ""
		}
		out, _ := exec.Command(p[program], args...).Output()
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line
	}
	parts := []string{runtime.Version(), "containerd 2.4.2", "crane v0.21.6"}
	for _, v := range []string{first("tar", "--version"), first("skopeo", "--version"), first("umoci", "--version")} {
		if v != "" {
			parts = append(parts, v)
		}
	}
	for _, name := range []string{"igzip", "unpigz"} {
		if p[name] != "" {
			parts = append(parts, name+" for the tuned containerd")
			break
		}
	}
	return strings.Join(parts, ", ")
}
