package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// matrixVariable selects what TestMatrix runs: a regular expression on version/install/mode/unpack/row.
// Only the whole matrix, ".", writes docs/compatibility.md.
const matrixVariable = "TANK_MATRIX"

// matrixVersions are the versions of containerd, the latest of each line that the module proxy has, newest first.
var matrixVersions = []string{Pinned, "2.3.7", "2.2.9"}

// column is one way to run a node.
type column struct {
	version string
	setup   Setup
}

func (c column) String() string {
	return c.version + "/" + c.title("full", "second", "/")
}

// title describes the column in words.
func (c column) title(full, second, separator string) string {
	words := []string{full, "overlay", "parallel"}
	if c.setup.WithoutContent {
		words[0] = second
	}
	if c.setup.Directory {
		words[1] = "directory"
	}
	if c.setup.Sequential {
		words[2] = "sequential"
	}
	return strings.Join(words, separator)
}

// columns are all of a version, in the order of the table. Directory mode has no parallel unpack: there
// the drop-in leaves out the capability, and containerd unpacks one layer after the other.
func columns(version string) []column {
	var all []column
	for _, without := range []bool{false, true} {
		all = append(all,
			column{version, Setup{WithoutContent: without}},
			column{version, Setup{WithoutContent: without, Sequential: true}},
			column{version, Setup{WithoutContent: without, Sequential: true, Directory: true}})
	}
	return all
}

// limit is a known failure in some cells, with its reason. Everything else in these cells must hold.
type limit struct {
	cells  *regexp.Regexp // on column/row
	faults *regexp.Regexp // which every fault matches
	reason string
}

// limits are the known failures. A cell with another fault fails the test, and so does a cell that
// is listed and has no fault.
var limits = []limit{
	{regexp.MustCompile(`^2\.2\..*/drop-in$`), regexp.MustCompile(`^containerd warns: .*unpack_config optional`),
		"containerd 2.2 warns that it ignores `optional`; its own overlayfs has to work there as well."},
	{regexp.MustCompile(`^2\.[23]\..*/parallel/pull-skipped$`), regexp.MustCompile(`^fetched again: `),
		"In parallel unpack, containerd before 2.4 fetches and applies every layer but the lowest, whatever the " +
			"snapshotter answers. Tank does not unpack any of them again."},
}

// outcome lists the faults of a cell; it is empty if there are none.
type outcome []string

// cell is the test in which one operation runs. Its failures are recorded and judged afterwards.
type cell struct {
	testing.TB

	mu  sync.Mutex // guards out
	out outcome
}

func (c *cell) Errorf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out, fmt.Sprintf(format, args...))
}

func (c *cell) Error(args ...any) { c.Errorf("%s", strings.TrimSpace(fmt.Sprintln(args...))) }

func (c *cell) Fatalf(format string, args ...any) {
	c.Errorf(format, args...)
	runtime.Goexit()
}

func (c *cell) Fatal(args ...any) {
	c.Error(args...)
	runtime.Goexit()
}

func (c *cell) FailNow() { c.Fatal("failed") }

func (c *cell) Failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out) > 0 || c.TB.Failed()
}

// TestMatrix runs each row of the table of docs/compatibility.md in each column, on a node of its own.
func TestMatrix(t *testing.T) {
	selected := os.Getenv(matrixVariable)
	if selected == "" {
		t.Skipf("takes long and is run by `make matrix`, which sets %s", matrixVariable)
	}
	want, err := regexp.Compile(selected)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	results := map[string]outcome{}
	t.Run("cells", func(t *testing.T) {
		for _, version := range matrixVersions {
			for _, col := range columns(version) {
				for _, r := range matrixRows {
					name := col.String() + "/" + r.id
					if !want.MatchString(name) {
						continue
					}
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						runCell(t, col, r, func(o outcome) {
							mu.Lock()
							defer mu.Unlock()
							results[name] = o
						})
					})
				}
			}
		}
	})
	table := compatibility(results)
	if selected != "." || t.Failed() {
		t.Logf("docs/compatibility.md is not written, as this is not the whole matrix without faults\n%s", table)
		return
	}
	if err := os.WriteFile(filepath.Join(moduleDir(), "..", "docs", "compatibility.md"), []byte(table),
		0o644); err != nil {
		t.Fatal(err)
	}
}

// TestColumns runs some rows in the other columns as part of the ordinary tests, which all use the first column.
func TestColumns(t *testing.T) {
	sequential, directory := Setup{Sequential: true}, Setup{Sequential: true, Directory: true}
	for _, c := range []struct {
		setup Setup
		rows  []string
	}{
		{Setup{}, []string{"pull-known", "pull-skipped", "pull-unlabelled", "pull-local", "export", "push"}},
		{sequential, []string{"pull", "pull-shared", "pull-reordered", "pull-skipped", "mount"}},
		{directory, []string{"mount", "rm", "pull-known", "usage"}},
	} {
		col := column{Pinned, c.setup}
		for _, id := range c.rows {
			i := slices.IndexFunc(matrixRows, func(r matrixRow) bool { return r.id == id })
			t.Run(col.String()+"/"+id, func(t *testing.T) {
				t.Parallel()
				runCell(t, col, matrixRows[i], func(outcome) {})
			})
		}
	}
}

// runCell runs a row on a node of the column, judges the outcome, and passes it on.
func runCell(t *testing.T, col column, r matrixRow, result func(outcome)) {
	c := &cell{TB: t}
	t.Cleanup(func() { // registered first: runs after what the cleanups of the node find
		judge(t, col.String()+"/"+r.id, c.out)
		result(c.out)
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(newMatrixNode(c, col))
	}()
	<-done
}

// judge compares a cell's outcome with limits.
func judge(t *testing.T, name string, o outcome) {
	l := limitOf(name)
	for _, fault := range o {
		if l == nil || !l.faults.MatchString(fault) {
			t.Errorf("fails: %s", fault)
		}
	}
	if l != nil && len(o) == 0 {
		t.Errorf("holds, though limits has: %s", l.reason)
	}
}

func limitOf(name string) *limit {
	for i, l := range limits {
		if l.cells.MatchString(name) {
			return &limits[i]
		}
	}
	return nil
}

// compatibility is the text of docs/compatibility.md.
func compatibility(results map[string]outcome) string {
	var b strings.Builder
	b.WriteString(compatibilityHead)
	var notes []string
	mark := func(text string) string {
		i := slices.Index(notes, text)
		if i < 0 {
			i = len(notes)
			notes = append(notes, text)
		}
		return fmt.Sprintf(" [%d]", i+1)
	}
	for _, version := range matrixVersions {
		cols := columns(version)
		fmt.Fprintf(&b, "\n## containerd %s\n\n|", version)
		for _, col := range cols {
			fmt.Fprintf(&b, " | %s", col.title("full install", "second install", "<br>"))
		}
		b.WriteString(" |\n|---" + strings.Repeat("|---", len(cols)) + "|\n")
		for _, r := range matrixRows {
			fmt.Fprintf(&b, "| %s", r.title)
			for _, col := range cols {
				name := col.String() + "/" + r.id
				o, ran := results[name]
				text := "yes"
				switch l := limitOf(name); {
				case !ran:
					text = "not run"
				case len(o) > 0 && l == nil:
					text = "no"
				case len(o) > 0:
					text = "in part" + mark(l.reason)
				}
				fmt.Fprintf(&b, " | %s", text)
			}
			b.WriteString(" |\n")
		}
	}
	if len(notes) > 0 {
		b.WriteString("\n## Notes\n\n")
	}
	for i, n := range notes {
		fmt.Fprintf(&b, "%d. %s\n", i+1, n)
	}
	b.WriteString("\n## What each row asserts\n\nEach cell runs on a node of its own with the tests' own image, " +
		"which has features that are rare in real images " +
		"(`integration/README.md`).\n\n")
	for _, r := range matrixRows {
		fmt.Fprintf(&b, "- %s: %s\n", r.title, r.asserts)
	}
	return WrapMarkdown(b.String())
}

const compatibilityHead = `# Compatibility with containerd

` + "`make matrix`" + ` writes this document and runs every cell of it; do not edit it. [containerd.md](containerd.md) describes how to set up a node.

- *full install*: the drop-in that ` + "`tank-snapshotter config containerd`" + ` prints; containerd proxies snapshots, diffs and content.
- *second install*: ` + "`config containerd --without-content`" + ` and the key ` + "`containerd_address`" + ` in Tank's config; containerd keeps its own content store.
- *parallel*: as printed, ` + "`max_concurrent_unpacks = 4`" + `; *sequential*: 1. Tank's mode *directory* has no parallel unpack.

The versions were the latest of their lines in the Go module proxy when this document was written.
`
