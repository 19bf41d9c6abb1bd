package snapshot_test

import (
	"strings"
	"testing"

	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// entryRows are unusual entries that other programs accept, spread over several layers
// (docs/adr/0027-entries-that-others-take.md).
var entryRows = []stackRow{
	{"whiteouts of the longest names", [][]Item{
		{F(longest, "1"), F(longest[3:], "1"), D("d"), F("d/"+longest, "1"), F("keep", "1")},
		{W(".wh." + longest), W(".wh." + longest[3:]), W("d/.wh." + longest)}},
		[]string{"d dir", `keep file "1"`}, nil},
	{"a device 0:0 over a file and a tree", [][]Item{{F("a", "1"), D("d"), F("d/x", "1"), F("keep", "1")},
		{C("a", 0, 0), C("d", 0, 0)}},
		[]string{`keep file "1"`}, nil},
	{"a device 0:0 over a file of the same layer", [][]Item{{F("a", "1")},
		{F("a", "2"), F("b", "2"), C("a", 0, 0), C("b", 0, 0)}}, nil, nil},
	{"a device 0:0 before a file below its name",
		[][]Item{{D("d").Mode(0o700), F("d/x", "1")}, {C("d", 0, 0), F("d/y", "2")}},
		[]string{"d dir @0", `d/y file "2"`}, nil},
	{"a device 0:0 in a directory that does not exist", [][]Item{{F("a", "1")}, {C("p/q/x", 0, 0)}},
		[]string{`a file "1"`, "p dir @0", "p/q dir @0"}, nil},
	{"a device 0:0 in a directory of the parent", [][]Item{{D("d").Mode(0o700).Owner(3, 4), F("d/x", "1")},
		{C("d/x", 0, 0)}},
		[]string{"d dir 0700 3:4"}, nil},
	{"a device 0:0 below a file", [][]Item{{F("n", "1")}, {C("n/x", 0, 0)}}, []string{"n dir @0"}, nil},
	{"a device 0:0 through a symlink of the parent", [][]Item{{D("d"), F("d/x", "1"), S("s", "d")}, {C("s/x", 0, 0)}},
		[]string{"d dir", "s symlink -> d"}, nil},
	{"a device 0:0 through a symlink of the parent and over a file of the same layer",
		[][]Item{{D("d"), S("s", "d")}, {F("d/x", "2"), C("s/x", 0, 0)}},
		[]string{"d dir", "s symlink -> d"}, nil},
	{"a device 0:0 through a symlink of the parent and then a file",
		[][]Item{{D("d"), F("d/x", "1"), S("s", "d")}, {C("s/x", 0, 0), F("d/x", "2")}},
		[]string{"d dir", `d/x file "2"`, "s symlink -> d"}, nil},
	{"a device 0:0 and a hard link to it",
		[][]Item{{F("a", "1"), F("b", "1"), F("c", "1")}, {C("a", 0, 0), H("b", "a")}},
		[]string{`c file "1"`}, nil},
	{"a file that returns above a device 0:0",
		[][]Item{{F("a", "1")}, {C("a", 0, 0)}, {F("a", "3")}}, []string{`a file "3"`}, nil},
	{"negative owners", [][]Item{{F("a", "1").Owner(-2, -1), D("d").Owner(-1, 4294967295)},
		{F("d/x", "2").Owner(-2, -2)}},
		[]string{`a file 4294967294:0 "1"`, "d dir", `d/x file 4294967294:4294967294 "2"`}, nil},
	{"entries without a name and the root as a file", [][]Item{{F("", "1"), S(".", "a"), H("x/..", "a"), F("a", "1")},
		{D(""), P("..")}},
		[]string{`a file "1"`}, nil},
	{"content below a directory named like a whiteout",
		[][]Item{{D("x"), F("x/f", "1")}, {D(".wh.x"), F(".wh.x/f", "2")}},
		[]string{".wh.x dir @0", `.wh.x/f file "2"`}, nil},
	{"more content below a directory named like a whiteout", [][]Item{{F("d/.wh.x/f", "1"), F("d/.wh.x/g", "1")},
		{W("d/.wh.x/.wh.f"), F("d/.wh.x/h", "2")}},
		[]string{"d dir @0", "d/.wh.x dir @0", `d/.wh.x/g file "1"`, `d/.wh.x/h file "2"`}, nil},
	{"content through a lower symlink to a directory named like a whiteout",
		[][]Item{{S("s", ".wh.x")}, {F("s/f", "1")}},
		[]string{".wh.x dir @0", `.wh.x/f file "1"`, "s symlink -> .wh.x"}, nil},
}

var longest = strings.Repeat("n", 255)

func TestEntries(t *testing.T) {
	requireMounts(t)
	for _, row := range entryRows {
		t.Run(row.testName, row.run)
	}
}
