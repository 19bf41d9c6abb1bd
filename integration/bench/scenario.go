package main

import (
	"fmt"
	"slices"
	"strings"
)

// scenario is one question that the program answers: which images, pulled by whom. Its section of the
// document is between the markers bench-NAME, its chart is NAME.svg.
type scenario struct {
	name   string
	title  string // of the chart
	images []recipe
	only   []string // contenders, the one that the others are compared with first
	rounds int
	goals  []goal
}

// section is the name in the document's markers.
func (s scenario) section() string { return "bench-" + s.name }

// series reports whether one contender pulls several images, to measure how the time grows.
func (s scenario) series() bool { return len(s.images) > 1 }

// slopeGoal is the exponent of time against size up to which growth counts as linear.
const slopeGoal = 1.1

// scenarios are all there are, in the order in which `-scenario all` runs them.
func scenarios() []scenario {
	return []scenario{
		{
			name: "small", title: "50 MB, six layers", images: []recipe{{compressed: 50, layers: 6}}, rounds: 5,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "crane", "overlayfs",
				"overlayfs-tuned", "overlayfs-cri", "umoci"},
		},
		{
			name: "crane", title: "300 MB, six layers", images: []recipe{{compressed: 300, layers: 6}}, rounds: 5,
			only:  []string{"tank", "tank-durable", "crane"},
			goals: []goal{{seconds, "tank", "crane", 0.65, "tank-durable"}, {cpuSeconds, "tank", "crane", 1, ""}},
		},
		{
			name: "pull", title: "700 MB, six layers", images: []recipe{{compressed: 700, layers: 6}}, rounds: 5,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "crane", "overlayfs",
				"overlayfs-tuned", "overlayfs-cri", "umoci"},
			goals: []goal{
				{seconds, "tank", "overlayfs", 0.33, "tank-durable"},
				{seconds, "tank", "overlayfs-tuned", 0.50, "tank-durable"},
				{cpuSeconds, "tank", "overlayfs", 0.55, "tank-durable"},
				{seconds, "tank-containerd", "overlayfs", 0.40, ""},
				{seconds, "tank-containerd", "overlayfs-tuned", 0.60, ""},
				{seconds, "tank-cri", "overlayfs-cri", 0, ""},
				{seconds, "tank-durable", "umoci", 0.22, "tank"},
				{seconds, "tank-durable", "crane", 0.40, "tank"},
				{peakMB, "tank-durable", "", 100, "tank"},
			},
		},
		{
			name: "layer", title: "One layer of 2 GB unpacked", images: []recipe{{unpacked: 2000, layers: 1}},
			rounds: 3,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "crane", "overlayfs",
				"overlayfs-tuned", "overlayfs-cri"},
			goals: []goal{{seconds, "tank-durable", "overlayfs", 0.45, "tank"},
				{seconds, "tank-containerd", "overlayfs", 0, ""}},
		},
		{
			name: "layers", title: "240 MB, 120 layers", images: []recipe{{compressed: 240, layers: 120}}, rounds: 3,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "crane", "overlayfs",
				"overlayfs-tuned", "overlayfs-cri"},
		},
		{
			name: "files", title: "500,000 small files, six layers", images: []recipe{{entries: 500_000, layers: 6}},
			rounds: 3,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "crane", "overlayfs",
				"overlayfs-tuned", "overlayfs-cri"},
		},
		{
			name: "update", title: "700 MB, the last of six layers is new",
			images: []recipe{{compressed: 700, layers: 6, update: true}}, rounds: 3,
			only: []string{"tank", "tank-durable", "tank-containerd", "tank-cri", "overlayfs", "overlayfs-tuned",
				"overlayfs-cri", "umoci"},
		},
		{
			name: "native", title: "700 MB, six layers, and a container's snapshot",
			images: []recipe{{compressed: 700, layers: 6}}, rounds: 3,
			only: []string{"tank-directory", "native"},
			goals: []goal{{seconds, "tank-directory", "native", 0.10, ""},
				{diskMB, "tank-directory", "native", 0.6, ""}},
		},
		{
			name: "linear", title: "Growth with bytes and entries", rounds: 3, only: []string{"tank"},
			images: []recipe{
				{unpacked: 100, layers: 6}, {unpacked: 250, layers: 6}, {unpacked: 500, layers: 6},
				{unpacked: 1000, layers: 6}, {unpacked: 2000, layers: 6},
				{entries: 1000, layers: 6}, {entries: 10_000, layers: 6}, {entries: 100_000, layers: 6},
				{entries: 500_000, layers: 6},
			},
		},
	}
}

// selectScenarios returns the named scenarios, changed by the flags.
func selectScenarios(o options) ([]scenario, error) {
	var picked []scenario
	var known []string
	names := strings.Split(o.scenarios, ",")
	for _, s := range scenarios() {
		known = append(known, s.name)
		if o.scenarios != "all" && !slices.Contains(names, s.name) {
			continue
		}
		s, err := s.with(o)
		if err != nil {
			return nil, err
		}
		picked = append(picked, s)
	}
	for _, name := range names {
		if name != "all" && !slices.Contains(known, name) {
			return nil, fmt.Errorf("scenario %q: they are all or some of %s", name, strings.Join(known, ","))
		}
	}
	return picked, nil
}

// with applies the flags.
func (s scenario) with(o options) (scenario, error) {
	if o.rounds > 0 {
		s.rounds = o.rounds
	}
	if o.only != "" {
		s.only = strings.Split(o.only, ",")
	}
	for i := range s.images {
		r := &s.images[i]
		if (o.size > 0 || o.layers > 0 || o.image != "") && s.series() || o.image != "" && r.update {
			return s, fmt.Errorf("scenario %s: its images can't be replaced, just scaled", s.name)
		}
		if o.size > 0 {
			*r = recipe{compressed: o.size, layers: r.layers, update: r.update}
		}
		if o.layers > 0 {
			r.layers = o.layers
		}
		r.layout = o.image
		r.scale(o.scale)
	}
	return s, nil
}

// describeScenarios is a line of help for each.
func describeScenarios() string {
	var w strings.Builder
	for _, s := range scenarios() {
		fmt.Fprintf(&w, "\n%s: %s", s.name, s.title)
	}
	return w.String()
}
