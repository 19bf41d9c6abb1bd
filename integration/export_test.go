package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkExport exports an image of 300 MB (or $TANK_TEST_EXPORT_MB) from Tank's content store and
// from containerd's own in turn, and reports the median seconds of both and the median ratio.
func BenchmarkExport(b *testing.B) {
	size := 300
	if s := os.Getenv("TANK_TEST_EXPORT_MB"); s != "" {
		var err error
		if size, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	e := New(b)
	r := e.NewRegistry()
	var layers []blobLayer
	for i := range 3 {
		layers = append(layers, gzipLayer(b, file("noise-"+strconv.Itoa(i), 0o644, random(byte(i), size<<20/3))))
	}
	r.PushBuilt(rawImage(b, layers...), "test/big:1")
	ref := TestRegistry + "/test/big:1"
	k, tank := e.startNode(Setup{}, r)
	own := e.NewContainerd(ContainerdOptions{Name: "own", Registries: []*Proxy{r.Proxy}})
	cpu := map[string]float64{}
	export := func(c *Containerd) float64 {
		before := []float64{cpuSeconds(b, k.Daemon().Pid()), cpuSeconds(b, c.Process().Pid())}
		name := filepath.Join(e.Dir, "out.tar")
		start := time.Now()
		c.Ctr("images", "export", name, ref)
		took := time.Since(start)
		if c.Snapshotter == "tank" {
			cpu["tank"] += cpuSeconds(b, k.Daemon().Pid()) - before[0]
			cpu["containerd with tank"] += cpuSeconds(b, c.Process().Pid()) - before[1]
		} else {
			cpu["containerd alone"] += cpuSeconds(b, c.Process().Pid()) - before[1]
		}
		if err := os.Remove(name); err != nil {
			b.Fatal(err)
		}
		return took.Seconds()
	}
	var ours, theirs, ratios []float64
	for _, c := range []*Containerd{tank, own} {
		c.Pull(ref)
		export(c)
	}
	clear(cpu)
	for b.Loop() {
		for range 5 {
			t, o := export(tank), export(own)
			ours, theirs, ratios = append(ours, t), append(theirs, o), append(ratios, t/o)
		}
	}
	b.ReportMetric(median(ours), "s/tank")
	b.ReportMetric(median(theirs), "s/containerd")
	b.ReportMetric(median(ratios), "ratio")
	for what, seconds := range cpu {
		b.Logf("CPU seconds of one export, %s: %.2f", what, seconds/float64(len(ratios)))
	}
}

// cpuSeconds is the time that a process has run for.
func cpuSeconds(t testing.TB, pid int) float64 {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] { // utime and stime, fields 14 and 15 of proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return float64(ticks) / 100
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}
