package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
)

// drawing is what a reader of a chart sees.
type drawing struct {
	lengths map[string][]float64 // of bars, by class
	texts   []string
	paths   []string
}

// read parses a chart to its end.
func read(t *testing.T, svg string) drawing {
	t.Helper()
	d := drawing{lengths: map[string][]float64{}}
	for dec := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return d
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		attr := map[string]string{}
		for _, a := range start.Attr {
			attr[a.Name.Local] = a.Value
		}
		switch start.Name.Local {
		case "rect":
			if attr["y"] == "37" || attr["class"] == "back" { // the legend
				continue
			}
			w, err := strconv.ParseFloat(attr["width"], 64)
			if err != nil {
				t.Fatal(err)
			}
			d.lengths[attr["class"]] = append(d.lengths[attr["class"]], w)
		case "text":
			var text string
			if err := dec.DecodeElement(&text, &start); err != nil {
				t.Fatal(err)
			}
			d.texts = append(d.texts, text)
		case "path":
			d.paths = append(d.paths, attr["d"])
		}
	}
}

func TestChart(t *testing.T) {
	c := chart{name: "x", title: "a < b & c", unit: "seconds", bars: []bar{
		{"Tank \"one\"", 2, 1, 3, 4}, {"peer <two>", 8, 7, 16, 10}, {"none", 0, 0, 0, 0},
	}}
	d := read(t, c.svg())
	for class, want := range map[string][]float64{
		"wall": {plotWidth * 2 / 16., plotWidth * 8 / 16., 0},
		"cpu":  {plotWidth * 4 / 16., plotWidth * 10 / 16., 0},
	} {
		if got := d.lengths[class]; len(got) != len(want) {
			t.Errorf("%s: bars of %v, want %v", class, got, want)
			continue
		}
		for i, w := range want {
			if math.Abs(d.lengths[class][i]-w) > 0.06 { // one decimal
				t.Errorf("%s: bar %d of %g, want %g", class, i, d.lengths[class][i], w)
			}
		}
	}
	texts := strings.Join(d.texts, "|")
	for _, want := range []string{"a < b & c", "seconds, median, fastest and slowest", "CPU seconds, median",
		"Tank \"one\"", "peer <two>", "|8|", "|10|"} {
		if !strings.Contains(texts, want) {
			t.Errorf("%q is not in %q", want, texts)
		}
	}
	// The second whisker goes from 7 to the right end.
	if len(d.paths) != 3 || !strings.HasPrefix(d.paths[1], "M525.0 112H750.0") {
		t.Errorf("whiskers %q", d.paths)
	}
}

func TestTickStep(t *testing.T) {
	for longest, want := range map[float64]float64{20: 5, 16: 2, 7.9: 1, 0.85: 0.2, 63: 10, 4: 1} {
		if got := tickStep(longest); math.Abs(got-want) > want*1e-9 {
			t.Errorf("%g: step %g, want %g", longest, got, want)
		}
	}
}

// TestSeriesCharts: bars are seconds per unit, so that linear growth gives bars of one length.
func TestSeriesCharts(t *testing.T) {
	var rows []row
	for _, n := range []float64{1, 2, 4} {
		rows = append(rows, rowOf("tank", &source{image: image{Unpacked: int64(n * 1e9), Entries: 10}}, 3*n))
		rows = append(rows,
			rowOf("tank", &source{image: image{Entries: int(n * 1e3)}, recipe: recipe{entries: 1}}, 5*n))
	}
	b := &bench{}
	b.images = make([]recipe, 6)
	charts := b.charts(rows)
	if len(charts) != 2 || charts[0].name != "linear-bytes" || charts[1].name != "linear-entries" {
		t.Fatalf("charts %+v", charts)
	}
	for i, want := range []float64{3, 5} {
		if len(charts[i].bars) != 3 {
			t.Errorf("%s: %d bars", charts[i].name, len(charts[i].bars))
		}
		for _, b := range charts[i].bars {
			if b.mid != want || b.low != want || b.high != want || b.cpu != want {
				t.Errorf("%s: bar %+v, want all %g", charts[i].name, b, want)
			}
		}
	}
}
