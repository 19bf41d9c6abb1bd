package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteSection(t *testing.T) {
	const text = "head\n<!-- bench-a: begin -->\nold\n<!-- bench-a: end -->\nbetween\n" +
		"<!-- bench-ab: begin -->\n<!-- bench-ab: end -->\ntail\n"
	for name, tc := range map[string]struct {
		section, want string
	}{
		"replaced": {"bench-a", "head\n<!-- bench-a: begin -->\nnew\n<!-- bench-a: end -->\nbetween\n<!-- bench-ab: " +
			"begin -->\n<!-- bench-ab: end -->\ntail\n"},
		"empty": {"bench-ab", "head\n<!-- bench-a: begin -->\nold\n<!-- bench-a: end -->\nbetween\n<!-- " +
			"bench-ab: begin -->\nnew\n<!-- bench-ab: end -->\ntail\n"},
		"no marks": {"bench-b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "doc.md")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			for range 2 { // a second run changes nothing
				err := writeSection(file, tc.section, "new\n")
				got, readErr := os.ReadFile(file)
				if readErr != nil {
					t.Fatal(readErr)
				}
				want := tc.want
				if want == "" {
					want = text
				}
				if (err != nil) != (tc.want == "") || string(got) != want {
					t.Errorf("%v, file:\n%s", err, got)
				}
			}
		})
	}
}

func TestWriteCharts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bench")
	links, err := writeCharts(dir,
		[]chart{{name: "a", title: "A b", bars: []bar{{"x", 1, 1, 1, 1}}}, {name: "c", title: "C"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := "![A b](bench/a.svg)\n![C](bench/c.svg)\n"; links != want {
		t.Errorf("links %q, want %q", links, want)
	}
	for _, name := range []string{"a", "c"} {
		b, err := os.ReadFile(filepath.Join(dir, name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		read(t, string(b))
	}
}
