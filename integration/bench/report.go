package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
)

// measured is one quantity that is measured of a pull.
type measured struct {
	name string
	of   func(sample) float64
}

var (
	seconds    = measured{"seconds", func(s sample) float64 { return s.wall.Seconds() }}
	cpuSeconds = measured{"CPU seconds", func(s sample) float64 { return s.cpu.Seconds() }}
	peakMB     = measured{"peak MB", func(s sample) float64 { return float64(s.rss) / 1e6 }}
	diskMB     = measured{"disk MB", func(s sample) float64 { return float64(s.disk) / 1e6 }}
)

// median of the samples, and the smallest and the largest.
func (m measured) median(samples []sample) (mid, low, high float64) {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = m.of(s)
	}
	slices.Sort(v)
	mid = v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (mid + v[len(v)/2-1]) / 2
	}
	return mid, v[0], v[len(v)-1]
}

// goal is a limit for a median, or for its ratio to the median of a peer.
type goal struct {
	measured
	ours, peer string
	limit      float64 // 0: none, the ratio is told
	beside     string  // a contender of Tank's whose value is told as well; may be empty
}

// report returns the table, the goals, and a description of the machine.
func (b *bench) report(rows []row) string {
	var w strings.Builder
	if b.series() {
		b.writeSeries(&w, rows)
	} else {
		writeImage(&w, rows[0].src.image)
		fmt.Fprintf(&w, "Medians of %d alternating rounds; in brackets the fastest and the slowest.\n\n", b.rounds)
		writeTable(&w, rows)
		for _, g := range b.goals {
			g.write(&w, rows)
		}
		if len(b.goals) > 0 {
			w.WriteString("\n")
		}
	}
	writeTrees(&w, rows)
	fmt.Fprintf(&w, "Machine: %s. A new %s for each run%s. While pulls were measured, other processes and the "+
		"kernel's own threads took %.0f %% of the CPUs. %s.\n",
		machine(), b.opts.fs, b.deviceText(), elsewhere(rows), versions(b.progs))
	return w.String()
}

func writeImage(w *strings.Builder, img image) {
	fmt.Fprintf(w, "Image: %s; %.0f MB compressed, %.2f GB and %d entries unpacked. ", img.Name,
		float64(img.Compressed)/1e6,
		float64(img.Unpacked)/1e9, img.Entries)
	if len(img.Layers) > 1 {
		w.WriteString("Layers of")
		for i, l := range img.Layers {
			if i == 8 && len(img.Layers) > 9 {
				w.WriteString(" …")
				break
			}
			fmt.Fprintf(w, " %.1f", float64(l)/1e6)
		}
		w.WriteString(" MB. ")
	}
}

func writeTable(w *strings.Builder, rows []row) {
	fmt.Fprintf(w, "| | seconds | to %[1]s | CPU seconds | to %[1]s | peak MB | disk MB |\n"+
		"|---|---|---|---|---|---|---|\n", rows[0].title)
	base, _, _ := seconds.median(rows[0].samples)
	baseCPU, _, _ := cpuSeconds.median(rows[0].samples)
	for _, r := range rows {
		t, fast, slow := seconds.median(r.samples)
		u, _, _ := cpuSeconds.median(r.samples)
		rss, _, _ := peakMB.median(r.samples)
		disk, _, _ := diskMB.median(r.samples)
		fmt.Fprintf(w, "| %s | %.2f (%.2f-%.2f) | %.2f | %.2f | %.2f | %.0f | %.0f |\n", r.title, t, fast, slow, t/base,
			u, u/baseCPU, rss, disk)
	}
	w.WriteString("\n")
}

// write writes whether the goal is reached, and nothing if a contender did not take part.
func (g goal) write(w *strings.Builder, rows []row) {
	find := func(name string) *row {
		i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
		if i < 0 {
			return nil
		}
		return &rows[i]
	}
	ours, peer, beside := find(g.ours), find(g.peer), find(g.beside)
	if ours == nil || g.peer != "" && peer == nil {
		return
	}
	against, format, unit := "", "%.2f", 1.0
	if peer != nil {
		against = " against " + peer.title
		unit, _, _ = g.median(peer.samples)
	} else {
		format = "%.0f"
	}
	value, _, _ := g.median(ours.samples)
	fmt.Fprintf(w, "- %s, %s%s: "+format, g.name, ours.title, against, value/unit)
	if g.limit > 0 {
		fmt.Fprintf(w, "; the goal is "+format+": %s", g.limit, verdict(value/unit, g.limit))
	}
	if beside != nil {
		value, _, _ := g.median(beside.samples)
		fmt.Fprintf(w, " (%s: "+format+")", beside.title, value/unit)
	}
	w.WriteString("\n")
}

// verdict returns by how much a goal is missed.
func verdict(value, limit float64) string {
	if value <= limit {
		return "reached"
	}
	return fmt.Sprintf("missed by %.0f %%", 100*(value/limit-1))
}

// writeTrees lists the contenders whose root filesystem differs from the first contender's.
func writeTrees(w *strings.Builder, rows []row) {
	var others []string
	for _, r := range rows {
		if r.differs {
			others = append(others, r.title)
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(w, "Another root filesystem than the first contender's: %s.\n\n", strings.Join(others, "; "))
	}
}

// elsewhere returns the share of the CPUs that others took while pulls were measured, in percent.
func elsewhere(rows []row) float64 {
	var others, total time.Duration
	for _, r := range rows {
		for _, s := range r.samples {
			others += s.elsewhere
			total += s.wall * time.Duration(runtime.NumCPU())
		}
	}
	return 100 * float64(others) / float64(max(total, 1))
}

func (b *bench) deviceText() string {
	if b.opts.fs == "tmpfs" {
		return ""
	}
	return fmt.Sprintf(", %d GiB on a loop device on %s", b.gib, backingText(b.opts.backing))
}
