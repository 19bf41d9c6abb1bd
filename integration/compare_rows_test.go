package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// knownRow is a case in which other programs give another result than Tank. Its name is the first cell of a row of
// docs/adr/0003-layer-application.md, and what Tank's generator calls the case.
type knownRow struct {
	when string
	lets lets
}

// lets has the kinds of differences that each program may have.
type lets map[string]kind

var known = []knownRow{
	{"the header of a hard link changes the inode",
		lets{"umoci": attrs}},
	{"a hard link to a file of the layers below",
		lets{"overlayfs": refuses}},
	{"a path through a symlink of the layers below",
		lets{"overlayfs": anything}},
	{"a path through a loop of symlinks",
		lets{"umoci": refuses}},
	{"a directory without an entry",
		lets{"overlayfs": dirAttrs}},
	{"a directory in place of a file on the way to an entry",
		lets{"umoci": dirAttrs, "overlayfs": anything}},
	{"an entry in place of another one of its layer",
		lets{"overlayfs": refuses | attrs | dirAttrs}},
	{"a directory where its layer took one away, or had a whiteout",
		lets{"overlayfs": anything}},
	{"a whiteout of a directory that the layer implies",
		lets{"umoci": dirAttrs, "overlayfs": refuses | dirAttrs}},
	{"a whiteout of a name that the layer has",
		lets{"overlayfs": refuses}},
	{"a whiteout of nothing",
		lets{"overlayfs": refuses | shape}},
	{"a whiteout in a place that is missing or no directory",
		lets{"overlayfs": refuses | shape}},
	{"an opaque marker in the root",
		lets{"overlayfs": shape}},
	{"a character device 0:0",
		lets{"umoci": anything, "overlayfs": refuses | shape}},
	{"a name that begins with .wh..wh.",
		lets{"umoci": shape | refuses, "overlayfs": refuses | shape}},
	{"an entry without a name, or the root as a file",
		lets{"umoci": refuses}},
	{"an xattr that its file cannot have",
		lets{"umoci": refuses}},
	{"a negative owner",
		lets{"umoci": dirAttrs, "overlayfs": dirAttrs}},
}

// TestCompareRows holds the list of known differences against the decision record.
func TestCompareRows(t *testing.T) {
	adr, err := os.ReadFile(filepath.Join(moduleDir(), "..", "docs", "adr", "0003-layer-application.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range known {
		if !strings.Contains(string(adr), "\n| "+row.when+" |") {
			t.Errorf("no row %q", row.when)
		}
	}
}
