package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// goal is a ratio that is to be reached.
type goal struct {
	ours, peer string
	time, cpu  float64 // 0: none
}

func parseGoal(s string) (g goal, err error) {
	names, limits, ok := strings.Cut(s, "=")
	ours, peer, ok2 := strings.Cut(names, "/")
	if !ok || !ok2 {
		return g, fmt.Errorf("goal %q: wants ours/peer=time:cpu", s)
	}
	g.ours, g.peer = ours, peer
	wall, cpu, _ := strings.Cut(limits, ":")
	if g.time, err = strconv.ParseFloat(wall, 64); err != nil {
		return g, err
	}
	if cpu != "" {
		g.cpu, err = strconv.ParseFloat(cpu, 64)
	}
	return g, err
}

// median of samples' values, and the smallest and largest.
func median(samples []sample, value func(sample) float64) (mid, low, high float64) {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = value(s)
	}
	slices.Sort(v)
	mid = v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (mid + v[len(v)/2-1]) / 2
	}
	return mid, v[0], v[len(v)-1]
}

func wall(s sample) float64 { return s.wall.Seconds() }
func cpu(s sample) float64  { return s.cpu.Seconds() }

// render makes the report: the table, the ratios, and on what it was measured.
func render(b *bench, all []contender, res map[string][]sample, goals []goal) string {
	var w strings.Builder
	img := b.img
	fmt.Fprintf(&w, "Image: %s; %.0f MB compressed, %.2f GB and %d entries unpacked; layers of", img.Name, float64(img.Compressed)/1e6,
		float64(img.Unpacked)/1e9, img.Entries)
	for i, l := range img.Layers {
		if i == 8 && len(img.Layers) > 9 {
			fmt.Fprintf(&w, " … (%d)", len(img.Layers))
			break
		}
		fmt.Fprintf(&w, " %.1f", float64(l)/1e6)
	}
	fmt.Fprintf(&w, " MB. Medians of %d alternating rounds; in brackets the fastest and the slowest.\n\n", b.opts.rounds)
	fmt.Fprintf(&w, "| | seconds | to %[1]s | CPU seconds | to %[1]s | peak MB | disk MB |\n|---|---|---|---|---|---|---|\n", all[0].title)
	base, _, _ := median(res[all[0].name], wall)
	baseCPU, _, _ := median(res[all[0].name], cpu)
	var elsewhere, total time.Duration
	for _, c := range all {
		s := res[c.name]
		t, fast, slow := median(s, wall)
		u, _, _ := median(s, cpu)
		rss, _, _ := median(s, func(s sample) float64 { return float64(s.rss) / 1e6 })
		disk, _, _ := median(s, func(s sample) float64 { return float64(s.disk) / 1e6 })
		fmt.Fprintf(&w, "| %s | %.2f (%.2f-%.2f) | %.2f | %.2f | %.2f | %.0f | %.0f |\n", c.title, t, fast, slow, t/base, u, u/baseCPU, rss, disk)
		for _, s := range s {
			elsewhere += s.elsewhere
			total += s.wall * time.Duration(runtime.NumCPU())
		}
	}
	w.WriteString("\n")
	for _, g := range goals {
		renderGoal(&w, g, res)
	}
	fmt.Fprintf(&w, "Machine: %s. %s on %s. While pulls were measured, other processes and the kernel's own threads took %.0f %% of the CPUs. %s.\n",
		machine(), fsText(b.opts), backingText(b.opts.backing), 100*float64(elsewhere)/float64(max(total, 1)), versions(b.progs))
	return w.String()
}

func renderGoal(w *strings.Builder, g goal, res map[string][]sample) {
	ours, peer := res[g.ours], res[g.peer]
	if len(ours) == 0 || len(peer) == 0 {
		return
	}
	line := func(what string, value func(sample) float64, limit float64) {
		a, _, _ := median(ours, value)
		b, _, _ := median(peer, value)
		verdict := ""
		if limit > 0 {
			verdict = fmt.Sprintf("; the goal is %.2f: reached", limit)
			if a/b > limit {
				verdict = fmt.Sprintf("; the goal is %.2f: missed", limit)
			}
		}
		fmt.Fprintf(w, "- %s, %s against %s: %.2f%s\n", what, g.ours, g.peer, a/b, verdict)
	}
	line("time", wall, g.time)
	line("CPU", cpu, g.cpu)
	w.WriteString("\n")
}

func fsText(o options) string {
	if o.fs == "tmpfs" {
		return "A new tmpfs for each run"
	}
	return fmt.Sprintf("A new %s of %d GiB for each run, on a loop device", o.fs, o.fsSize)
}

// backingText names the file system that the loop file lies on.
func backingText(dir string) string {
	names := map[int64]string{0xef53: "ext4", 0x58465342: "XFS", unix.TMPFS_MAGIC: "tmpfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay"}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && names[st.Type] != "" {
		return names[st.Type]
	}
	return "an unknown file system"
}

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
	return fmt.Sprintf("%d CPUs (%s), %.0f GB, Linux %s", runtime.NumCPU(), model, float64(si.Totalram)*float64(si.Unit)/1e9,
		strings.SplitN(unix.ByteSliceToString(uts.Release[:]), "-", 2)[0])
}

// versions names the peers that ran or could have.
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

// writeSection puts text between the markers of a section in a file.
func writeSection(file, section, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+section+": begin -->\n", "<!-- "+section+": end -->"
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s: no markers %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(head+begin+text+end+tail), 0o644)
}
