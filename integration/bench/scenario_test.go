package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestScenarios: the contenders of each scenario exist, its goals name only contenders of that scenario, different
// recipes have different keys, and docs/performance.md has the markers for its table.
func TestScenarios(t *testing.T) {
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	p := programs{}
	for _, c := range contenders() {
		for _, name := range c.needs {
			p[name] = "/" + name
		}
	}
	keys := map[string]recipe{}
	for _, s := range scenarios() {
		picked, err := selectContenders(s.only, "", p)
		if err != nil || len(picked) != len(s.only) {
			t.Errorf("%s: %d of %d contenders, %v", s.name, len(picked), len(s.only), err)
		}
		for _, g := range s.goals {
			for _, name := range []string{g.ours, g.peer, g.beside} {
				if name != "" && !slices.Contains(s.only, name) {
					t.Errorf("%s: a goal names %s, which does not take part", s.name, name)
				}
			}
		}
		for _, r := range s.images {
			if was, ok := keys[r.key()]; ok && was != r {
				t.Errorf("%s: %+v and %+v have the same key, %s", s.name, r, was, r.key())
			}
			keys[r.key()] = r
		}
		for _, mark := range []string{"begin", "end"} {
			if n := strings.Count(string(document), "<!-- "+s.section()+": "+mark+" -->"); n != 1 {
				t.Errorf("docs/performance.md: %d markers for the %s of %s", n, mark, s.section())
			}
		}
	}
}

func TestSelect(t *testing.T) {
	for name, tc := range map[string]struct {
		options options
		names   string
		first   recipe
		bad     bool
	}{
		"one": {options: options{scenarios: "pull", scale: 1}, names: "pull",
			first: recipe{compressed: 700, layers: 6}},
		"order": {options: options{scenarios: "native,small", scale: 1}, names: "small,native",
			first: recipe{compressed: 50, layers: 6}},
		"scale": {options: options{scenarios: "files", scale: 0.01}, names: "files",
			first: recipe{entries: 5000, layers: 6}},
		"size": {options: options{scenarios: "layer", scale: 1, size: 30, layers: 2}, names: "layer",
			first: recipe{compressed: 30, layers: 2}},
		"update": {options: options{scenarios: "update", scale: 1, size: 30}, names: "update",
			first: recipe{compressed: 30, layers: 6, update: true}},
		"image": {options: options{scenarios: "pull", scale: 1, image: "oci:a:b"}, names: "pull",
			first: recipe{compressed: 700, layers: 6, layout: "oci:a:b"}},
		"all": {options: options{scenarios: "all", scale: 1},
			names: "small,crane,pull,layer,layers,files,update,native,linear",
			first: recipe{compressed: 50, layers: 6}},
		"unknown":  {options: options{scenarios: "pull,push", scale: 1}, bad: true},
		"series":   {options: options{scenarios: "linear", scale: 1, size: 30}, bad: true},
		"no twins": {options: options{scenarios: "update", scale: 1, image: "oci:a:b"}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			picked, err := selectScenarios(tc.options)
			if (err != nil) != tc.bad {
				t.Fatal(err)
			}
			if tc.bad {
				return
			}
			var names []string
			for _, s := range picked {
				names = append(names, s.name)
			}
			if got := strings.Join(names, ","); got != tc.names || picked[0].images[0] != tc.first {
				t.Errorf("%s, %+v; want %s, %+v", got, picked[0].images[0], tc.names, tc.first)
			}
		})
	}
}

func TestContenders(t *testing.T) {
	p := programs{"tank": "/t"}
	picked, err := selectContenders([]string{"umoci", "tank"}, "old=/old", p)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range picked {
		names = append(names, c.name)
	}
	if got := strings.Join(names, ","); got != "tank,old" || p["old"] != "/old" {
		t.Errorf("%s, old is %s", got, p["old"])
	}
	for _, only := range [][]string{{"tank", "nobody"}, {"umoci"}} {
		if _, err := selectContenders(only, "", p); err == nil {
			t.Errorf("%v: no error", only)
		}
	}
}
