package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// chart is a picture of horizontal bars.
type chart struct {
	name  string // of its file
	title string
	unit  string
	bars  []bar
}

// bar is one contender: median seconds with the fastest and the slowest, and median CPU seconds below it.
type bar struct {
	label          string
	mid, low, high float64
	cpu            float64
}

// charts of the scenario: one, or with a series one for each growth, in which bars of one length mean linear growth.
func (b *bench) charts(rows []row) []chart {
	if !b.series() {
		c := chart{name: b.name, title: b.title, unit: "seconds"}
		for _, r := range rows {
			c.bars = append(c.bars, r.bar(r.title, 1))
		}
		return []chart{c}
	}
	var all []chart
	for _, g := range growths {
		c := chart{name: g.name, title: b.title + ": " + g.what, unit: "seconds per " + g.unit}
		for _, r := range g.of(rows) {
			n := g.amount(r.src.image)
			c.bars = append(c.bars,
				r.bar(fmt.Sprintf("%.3g GB, %d entries", float64(r.src.Unpacked)/1e9, r.src.Entries), n))
		}
		all = append(all, c)
	}
	return all
}

func (r row) bar(label string, per float64) bar {
	mid, low, high := seconds.median(r.samples)
	cpu, _, _ := cpuSeconds.median(r.samples)
	return bar{strings.ReplaceAll(label, "`", ""), mid / per, low / per, high / per, cpu / per}
}

// Measures of a chart, in its own units.
const (
	chartWidth = 860
	plotLeft   = 350
	plotWidth  = 400 // what is right of it is for the numbers
	plotTop    = 62
	barStep    = 38
)

// chartStyle has a background of its own, so that the chart can be read on any page.
const chartStyle = `<style>
text{font:13px system-ui,sans-serif;fill:#1f2328}
.small{font-size:11px;fill:#59636e}
.title{font-size:15px;font-weight:600}
.back{fill:#ffffff}
.grid{stroke:#d1d9e0}
.wall{fill:#2f6fde}
.cpu{fill:#b3bcc7}
.whisker{stroke:#1f2328;stroke-width:1.5}
@media(prefers-color-scheme:dark){
text{fill:#f0f6fc}
.small{fill:#9198a1}
.back{fill:#0d1117}
.grid{stroke:#3d444d}
.wall{fill:#4c8dff}
.cpu{fill:#59636e}
.whisker{stroke:#f0f6fc}
}
</style>
`

// svg draws the chart.
func (c chart) svg() string {
	var w strings.Builder
	bottom := plotTop + barStep*len(c.bars)
	fmt.Fprintf(&w, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\">\n"+
		"<title>%s</title>\n", chartWidth, bottom+34, escape(c.title))
	w.WriteString(chartStyle)
	fmt.Fprintf(&w, "<rect class=\"back\" width=\"%d\" height=\"%d\"/>\n", chartWidth, bottom+34)
	fmt.Fprintf(&w, "<text class=\"title\" x=\"14\" y=\"24\">%s</text>\n", escape(c.title))
	fmt.Fprintf(&w, "<rect class=\"wall\" x=\"14\" y=\"37\" width=\"12\" height=\"12\"/><text class=\"small\" "+
		"x=\"31\" y=\"47\">%s, median, fastest and slowest</text>\n", escape(c.unit))
	fmt.Fprintf(&w, "<rect class=\"cpu\" x=\"%d\" y=\"37\" width=\"12\" height=\"12\"/><text class=\"small\" "+
		"x=\"%d\" y=\"47\">CPU %s, median</text>\n",
		plotLeft, plotLeft+17, escape(c.unit))
	longest := c.longest()
	for v, step := 0.0, tickStep(longest); v <= longest; v += step {
		x := plotLeft + length(v, longest)
		fmt.Fprintf(&w, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>", x, plotTop, x, bottom)
		fmt.Fprintf(&w, "<text class=\"small\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.3g</text>\n", x, bottom+18,
			v)
	}
	for i, b := range c.bars {
		b.draw(&w, plotTop+barStep*i, longest)
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// draw draws the bar below y.
func (b bar) draw(w *strings.Builder, y int, longest float64) {
	fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", plotLeft-10, y+20, escape(b.label))
	fmt.Fprintf(w, "<rect class=\"wall\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"14\"/>", plotLeft, y+5,
		length(b.mid, longest))
	fmt.Fprintf(w, "<rect class=\"cpu\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"10\"/>\n", plotLeft, y+20,
		length(b.cpu, longest))
	low, high := plotLeft+length(b.low, longest), plotLeft+length(b.high, longest)
	fmt.Fprintf(w, "<path class=\"whisker\" d=\"M%.1f %dH%.1fM%.1f %dv8M%.1f %dv8\"/>\n", low, y+12, high, low, y+8,
		high, y+8)
	fmt.Fprintf(w, "<text x=\"%.1f\" y=\"%d\">%.3g</text>", max(high, plotLeft+length(b.mid, longest))+6, y+17, b.mid)
	fmt.Fprintf(w, "<text class=\"small\" x=\"%.1f\" y=\"%d\">%.3g</text>\n", plotLeft+length(b.cpu, longest)+6, y+29,
		b.cpu)
}

// longest is the value that takes the whole width, more than 0.
func (c chart) longest() float64 {
	v := 0.001
	for _, b := range c.bars {
		v = max(v, b.high, b.cpu)
	}
	return v
}

func length(v, longest float64) float64 { return plotWidth * v / longest }

// tickStep is 1, 2 or 5 times a power of ten, so that there are four to ten lines.
func tickStep(longest float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(longest/4)))
	for _, by := range []float64{5, 2} {
		if step*by <= longest/4 {
			return step * by
		}
	}
	return step
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
