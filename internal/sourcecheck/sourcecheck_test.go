package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestRepository checks this repository, as make lint does.
func TestRepository(t *testing.T) {
	faults, err := check("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

func TestColumns(t *testing.T) {
	long := strings.Repeat("x", 100)
	for line, want := range map[string]int{
		"":                           0,
		"\ta":                        5,
		"é…":                         2,
		"[a](" + long + ") b":        5,
		"see https://h/" + long:      4,
		"(https://h/" + long + ") b": 3,
	} {
		if got := columns(line); got != want {
			t.Errorf("columns(%q) = %d, want %d", line, got, want)
		}
	}
}

func TestWideMarkdown(t *testing.T) {
	long := strings.Repeat("word ", 30)
	for name, tc := range map[string]struct {
		text string
		want []int
	}{
		"paragraph":              {"a\n" + long + "\n", []int{2}},
		"item":                   {"- a\n\n    " + long + "\n", nil},
		"row":                    {"| " + long + "|\n", nil},
		"heading":                {"# " + long + "\n", nil},
		"fence":                  {"```\n" + long + "\n```\n" + long + "\n", []int{4}},
		"code":                   {"a\n\n    b\n    " + long + "\n", nil},
		"indented but no code":   {"a\n    " + long + "\n", []int{2}},
		"code ends with a blank": {"    a\n\n" + long + "\n", []int{3}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := wideMarkdown(tc.text); !slices.Equal(got, tc.want) {
				t.Errorf("lines %v, want %v", got, tc.want)
			}
		})
	}
}

func TestWideGo(t *testing.T) {
	long := strings.Repeat("word ", 30)
	for name, tc := range map[string]struct {
		text string
		want []int
	}{
		"comment":    {"package x\n\n// " + long + "\n", []int{3}},
		"string":     {"package x\n\nconst a = `" + long + "`\n", []int{3}},
		"raw string": {"package x\n\nconst a = `\n" + long + "\n`\n\n// " + long + "\n", []int{7}},
		"tabs":       {"package x\n\n" + strings.Repeat("\t", 31) + "\n", []int{3}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := wideGo(tc.text); !slices.Equal(got, tc.want) {
				t.Errorf("lines %v, want %v", got, tc.want)
			}
		})
	}
}

// TestReferences: each kind of reference that leads nowhere is found, and none that leads somewhere.
func TestReferences(t *testing.T) {
	good := map[string]string{
		"docs/a.md": "# A b: c\n[x](#a-b-c) [y](adr/0012-it.md) [z](../x/x.go) [w](https://h/none) ADR " +
			"12, TestGood, TestGo*\n",
		"docs/adr/0012-it.md":  "# It\n[x](../a.md#a-b-c)\n",
		"x/x.go":               "package x\n\n// See docs/adr/0012 and docs/a.md (ADR 12), not other/docs/b.\n",
		"x/x_test.go":          "package x\n\nfunc TestGood(t *testing.T) {}\n",
		"docs/architecture.md": "| `x` | x |\n",
		"docs/adr/README.md":   "[It](0012-it.md)\n",
		"docs/cases.md":        "| A1 | x |\n| D2 | x |\n",
		"x/cases_test.go":      "package x\n\n// See A1, D02 and C1 as bytes.\n",
		"bin/skipped.md":       "[x](none.md)\n",
	}
	for name, tc := range map[string]struct{ file, text, want string }{
		"nothing": {"docs/c.md", "text\n", ""},
		"file":    {"docs/c.md", "\n[x](none.md)\n", "docs/c.md:2: link to docs/none.md, which does not exist"},
		"heading": {"docs/c.md", "[x](a.md#none)\n",
			"docs/c.md:1: link to a heading #none, which docs/a.md does not have"},
		"own": {"docs/c.md", "[x](#none)\n",
			"docs/c.md:1: link to a heading #none, which docs/c.md does not have"},
		"path": {"x/y.go", "// docs/none.md\n", "x/y.go:1: docs/none.md does not exist"},
		"package": {"docs/c.md", "`internal/none`\n",
			"docs/c.md:1: internal/none is the path of no package or file"},
		"map": {"x/y.go", "// [github.com/tank-snapshotter/tank/none]\n",
			"x/y.go:1: none is the path of no package"},
		"decision": {"x/y.go", "// ADR 13\n", "x/y.go:1: 13 is the number of no decision record"},
		"broken":   {"x/y.go", "// ADR\n// 13\n", "x/y.go:2: 13 is the number of no decision record"},
		"unlisted": {"docs/adr/0013-new.md", "# New\n", "docs/adr/README.md: no link to 0013-new.md"},
		"test":     {"docs/c.md", "`TestNone`\n", "docs/c.md:1: no test is called TestNone"},
		"case":     {"x/y.go", "// A case (E13).\n", "x/y.go: case E13 is no row of docs/cases.md"},
		"tests":    {"docs/c.md", "`TestNo*`\n", "docs/c.md:1: no test is called TestNo"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, good)
			write(t, root, map[string]string{tc.file: tc.text})
			faults, err := check(root)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(faults, "\n"); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVersion: a build stamps the version of the file VERSION, also where git knows nothing of the directory.
func TestVersion(t *testing.T) {
	b, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimSpace(string(b))
	if !regexp.MustCompile(`^\d+\.\d+\.\d+(-[\w.]+)?$`).MatchString(version) {
		t.Fatalf("VERSION contains %q", b)
	}
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("make is not installed")
	}
	for name, tc := range map[string]struct{ variable, want string }{
		"without git": {"GIT_DIR=/none", `main\.version=` + regexp.QuoteMeta(version) + `'`},
		"own version": {"VERSION=9.9", `main\.version=9\.9'`},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("make", "--dry-run", "build")
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), tc.variable, "MAKEFLAGS=")
			out, err := cmd.CombinedOutput()
			if err != nil || !regexp.MustCompile(tc.want).Match(out) {
				t.Errorf("%v, want %s in\n%s", err, tc.want, out)
			}
		})
	}
}

// TestPackages: a package without a row in docs/architecture.md is found, and a row without a package.
func TestPackages(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{
		"docs/architecture.md":   "| `a` | x |\n| `b/c`, `d`, `b/e` | y |\n| `none/f` | z |\n\nSee `b/g`.\n",
		"a/a.go":                 "package a\n",
		"b/c/c.go":               "package c\n",
		"b/d/d.go":               "package d\n",
		"b/e/e.go":               "package e\n",
		"b/g/g.go":               "package g\n",
		"b/g/gtest/g.go":         "package gtest\n",
		"tests/x_test.go":        "package tests\n",
		"integration/b/b.go":     "package b\n",
		"b/testdata/hello/h.go":  "package main\n",
		"b/absent.go":            "package b\n\n// DESIGN section 8.\n",
		"docs/adr/0001-first.md": "# First\n",
		"docs/adr/README.md":     "[First](0001-first.md)\n",
	})
	faults, err := check(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"docs/architecture.md: no row of a table is about package b",
		"docs/architecture.md: no row of a table is about package b/g",
		"docs/architecture.md: none/f is no package",
		"b/absent.go:3: DESIGN is not in the repository",
	}
	if !slices.Equal(faults, want) {
		t.Errorf("got %q", faults)
	}
}
