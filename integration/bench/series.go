package main

import (
	"fmt"
	"math"
	"strings"
)

// growth is one dimension in which the images of a series grow: amount measures an image in that dimension, in units of
// unit, and has reports whether the images of a recipe grow in it.
type growth struct {
	name   string // of its chart
	what   string
	unit   string
	amount func(image) float64
	has    func(recipe) bool
}

var growths = []growth{
	{"linear-bytes", "bytes", "GB", func(i image) float64 { return float64(i.Unpacked) / 1e9 },
		func(r recipe) bool { return r.entries == 0 }},
	{"linear-entries", "entries", "1,000 entries", func(i image) float64 { return float64(i.Entries) / 1e3 },
		func(r recipe) bool { return r.entries > 0 }},
}

// of returns the rows whose images grow in that dimension.
func (g growth) of(rows []row) []row {
	var of []row
	for _, r := range rows {
		if g.has(r.src.recipe) {
			of = append(of, r)
		}
	}
	return of
}

// writeSeries writes the report of a series: a table for each growth, and the exponents.
func (b *bench) writeSeries(w *strings.Builder, rows []row) {
	fmt.Fprintf(w, "%s pulls generated images of %d layers. Medians of %d alternating rounds; in brackets the "+
		"fastest and the slowest. "+
		"The exponent is the slope of a straight line through the logarithms; 1 is linear.\n\n", rows[0].title,
		b.images[0].layers, b.rounds)
	for _, g := range growths {
		of := g.of(rows)
		fmt.Fprintf(w, "| GB unpacked | entries | seconds | per %[1]s | CPU seconds | per %[1]s | peak MB |\n"+
			"|---|---|---|---|---|---|---|\n", g.unit)
		for _, r := range of {
			n := g.amount(r.src.image)
			t, fast, slow := seconds.median(r.samples)
			u, _, _ := cpuSeconds.median(r.samples)
			rss, _, _ := peakMB.median(r.samples)
			fmt.Fprintf(w, "| %.3f | %d | %.2f (%.2f-%.2f) | %.3f | %.2f | %.3f | %.0f |\n",
				float64(r.src.Unpacked)/1e9, r.src.Entries, t, fast, slow, t/n, u, u/n, rss)
		}
		w.WriteString("\n")
		for _, m := range []measured{seconds, cpuSeconds} {
			g.writeSlope(w, m, of)
		}
		w.WriteString("\n")
	}
}

// writeSlope writes the exponent over all images. A constant cost makes that exponent smaller, so it also writes the
// exponent between the last two images.
func (g growth) writeSlope(w *strings.Builder, m measured, rows []row) {
	var x, y []float64
	for _, r := range rows {
		t, _, _ := m.median(r.samples)
		x, y = append(x, g.amount(r.src.image)), append(y, t)
	}
	n := len(x)
	all := slope(x, y)
	fmt.Fprintf(w,
		"- %s against %s: exponent %.2f; the goal is %.2f: %s (from the last image but one to the last: %.2f)\n",
		m.name, g.what, all, slopeGoal, verdict(all, slopeGoal), slope(x[n-2:], y[n-2:]))
}

// slope returns the slope of the straight line that best fits the logarithms, by least squares.
func slope(x, y []float64) float64 {
	var mx, my, xy, xx float64
	n := float64(len(x))
	for i := range x {
		mx += math.Log(x[i]) / n
		my += math.Log(y[i]) / n
	}
	for i := range x {
		dx := math.Log(x[i]) - mx
		xy += dx * (math.Log(y[i]) - my)
		xx += dx * dx
	}
	return xy / xx
}
