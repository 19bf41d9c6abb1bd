package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// samplesOf are samples of these seconds, with as many CPU seconds, peak MB and disk MB times 1, 10 and 100.
func samplesOf(seconds ...float64) []sample {
	var list []sample
	for _, s := range seconds {
		list = append(list,
			sample{wall: time.Duration(s * 1e9), cpu: time.Duration(s * 1e9), rss: int64(s * 10e6),
				disk: int64(s * 100e6)})
	}
	return list
}

func rowOf(name string, src *source, seconds ...float64) row {
	return row{contender: contender{name: name, title: strings.ToUpper(name)}, src: src, samples: samplesOf(seconds...)}
}

func TestMedian(t *testing.T) {
	for name, tc := range map[string]struct {
		seconds        []float64
		mid, low, high float64
	}{
		"one":  {[]float64{3}, 3, 3, 3},
		"odd":  {[]float64{9, 1, 4}, 4, 1, 9},
		"even": {[]float64{8, 1, 2, 4}, 3, 1, 8},
	} {
		t.Run(name, func(t *testing.T) {
			for m, factor := range map[*measured]float64{&seconds: 1, &cpuSeconds: 1, &peakMB: 10, &diskMB: 100} {
				mid, low, high := m.median(samplesOf(tc.seconds...))
				if mid != factor*tc.mid || low != factor*tc.low || high != factor*tc.high {
					t.Errorf("%s: %g (%g-%g)", m.name, mid, low, high)
				}
			}
		})
	}
}

func TestSlope(t *testing.T) {
	x := []float64{0.1, 0.25, 0.5, 1, 2}
	for name, tc := range map[string]struct {
		y    func(float64) float64
		want float64
	}{
		"constant":  {func(float64) float64 { return 7 }, 0},
		"linear":    {func(x float64) float64 { return 3 * x }, 1},
		"quadratic": {func(x float64) float64 { return 5 * x * x }, 2},
		"root":      {math.Sqrt, 0.5},
	} {
		t.Run(name, func(t *testing.T) {
			var y []float64
			for _, v := range x {
				y = append(y, tc.y(v))
			}
			if got := slope(x, y); math.Abs(got-tc.want) > 1e-9 {
				t.Errorf("slope %g, want %g", got, tc.want)
			}
		})
	}
	// An outlier counts as in least squares: logarithms 0, 1, 2 and 0, 1, 5.
	if got := slope([]float64{1, math.E, math.E * math.E},
		[]float64{1, math.E, math.Exp(5)}); math.Abs(got-2.5) > 1e-9 {
		t.Errorf("slope %g, want 2.5", got)
	}
}

func TestGoals(t *testing.T) {
	rows := []row{rowOf("a", nil, 2, 3, 4), rowOf("b", nil, 10), rowOf("c", nil, 5)}
	for name, tc := range map[string]struct {
		goal goal
		want string
	}{
		"reached": {goal{seconds, "a", "b", 0.3, ""}, "- seconds, A against B: 0.30; the goal is 0.30: reached\n"},
		"missed": {goal{cpuSeconds, "c", "b", 0.4, ""},
			"- CPU seconds, C against B: 0.50; the goal is 0.40: missed by 25 %\n"},
		"beside": {goal{seconds, "a", "b", 0.3, "c"},
			"- seconds, A against B: 0.30; the goal is 0.30: reached (C: 0.50)\n"},
		"no limit":  {goal{seconds, "a", "b", 0, ""}, "- seconds, A against B: 0.30\n"},
		"alone":     {goal{peakMB, "a", "", 25, "b"}, "- peak MB, A: 30; the goal is 25: missed by 20 % (B: 100)\n"},
		"no peer":   {goal{seconds, "a", "x", 0.3, ""}, ""},
		"not there": {goal{seconds, "x", "b", 0.3, ""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var w strings.Builder
			tc.goal.write(&w, rows)
			if w.String() != tc.want {
				t.Errorf("%q, want %q", w.String(), tc.want)
			}
		})
	}
}

func TestTable(t *testing.T) {
	img := image{Name: "generated, 2 layers", Layers: []int64{1e6, 2.5e6}, Compressed: 3.5e6, Unpacked: 8e6,
		Entries: 70}
	src := &source{image: img}
	rows := []row{rowOf("a", src, 2, 3, 4), rowOf("b", src, 6, 12, 9)}
	rows[1].differs = true
	rows[1].samples[0].elsewhere = time.Minute
	b := &bench{opts: options{fs: "tmpfs"}, progs: programs{}}
	b.images, b.rounds = []recipe{{}}, 3
	b.goals = []goal{{seconds, "a", "b", 0.5, ""}}
	text := b.report(rows)
	for _, want := range []string{
		"Image: generated, 2 layers; 4 MB compressed, 0.01 GB and 70 entries unpacked. Layers of 1.0 2.5 MB. " +
			"Medians of 3 alternating rounds",
		"| | seconds | to A | CPU seconds | to A | peak MB | disk MB |\n",
		"| A | 3.00 (2.00-4.00) | 1.00 | 3.00 | 1.00 | 30 | 300 |\n",
		"| B | 9.00 (6.00-12.00) | 3.00 | 9.00 | 3.00 | 90 | 900 |\n\n- seconds, A against B: 0.33; the goal is " +
			"0.50: reached\n\n",
		"Another root filesystem than the first contender's: B.\n\n",
		"Machine: ", "A new tmpfs for each run. ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the report:\n%s", want, text)
		}
	}
}

// TestSeries: what grows by bytes and what grows by entries have a table and exponents each.
func TestSeries(t *testing.T) {
	var rows []row
	for _, n := range []float64{1, 2, 4} {
		rows = append(rows, rowOf("tank", &source{image: image{Unpacked: int64(n * 1e9), Entries: 10}}, 3*n))
	}
	for _, n := range []float64{1, 10, 100} {
		src := &source{image: image{Unpacked: 1e9, Entries: int(n) * 1000}, recipe: recipe{entries: 1}}
		rows = append(rows, rowOf("tank", src, n*n))
	}
	b := &bench{opts: options{fs: "tmpfs"}, progs: programs{}}
	b.images, b.rounds = []recipe{{layers: 6}, {layers: 6}}, 1
	text := b.report(rows)
	for _, want := range []string{
		"| 2.000 | 10 | 6.00 (6.00-6.00) | 3.000 | 6.00 | 3.000 | 60 |\n",
		"| 1.000 | 10000 | 100.00 (100.00-100.00) | 10.000 | 100.00 | 10.000 | 1000 |\n",
		"- seconds against bytes: exponent 1.00; the goal is 1.10: reached (from the last image but one to the " +
			"last: 1.00)\n",
		"- CPU seconds against entries: exponent 2.00; the goal is 1.10: missed by 82 % (from the last image but " +
			"one to the last: 2.00)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the report:\n%s", want, text)
		}
	}
}
