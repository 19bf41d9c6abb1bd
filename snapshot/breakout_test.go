package snapshot_test

import (
	"testing"

	"github.com/containerd/errdefs"

	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// etc is what most of these layers have or stand on.
func etc(more ...Item) []Item {
	return append([]Item{D("etc").Mode(0o770), F("etc/passwd", "inside")}, more...)
}

// breakoutRows are the cases of containerd's TestBreakouts, by its names, as layers.
var breakoutRows = []stackRow{
	{"SymlinkAbsolute", [][]Item{{D("etc"), S("localetc", "/etc"), F("/localetc/unbroken", "unbroken")}},
		[]string{"etc dir", `etc/unbroken file "unbroken"`, "localetc symlink -> /etc"}, nil},
	{"SymlinkUpAndOut", [][]Item{{D("etc"), D("dummy"), S("localetc", "/dummy/../etc"), F("/localetc/unbroken", "unbroken")}},
		[]string{"dummy dir", "etc dir", `etc/unbroken file "unbroken"`, "localetc symlink -> /dummy/../etc"}, nil},
	{"SymlinkMultipleAbsolute", [][]Item{{D("etc"), D("dummy"), S("/dummy/etc", "/etc"), S("localetc", "/dummy/etc"), F("/dummy/etc/unbroken", "unbroken")}},
		[]string{"dummy dir", "dummy/etc symlink -> /etc", "etc dir", `etc/unbroken file "unbroken"`, "localetc symlink -> /dummy/etc"}, nil},
	{"SymlinkMultipleRelative", [][]Item{{D("etc"), D("dummy"), S("/dummy/etc", "/etc"), S("localetc", "./dummy/etc"), F("/dummy/etc/unbroken", "unbroken")}},
		[]string{"dummy dir", "dummy/etc symlink -> /etc", "etc dir", `etc/unbroken file "unbroken"`, "localetc symlink -> ./dummy/etc"}, nil},
	{"SymlinkEmptyFile", [][]Item{{D("etc"), F("etc/emptied", "notempty"), S("localetc", "/etc"), F("/localetc/emptied", "")}},
		[]string{"etc dir", `etc/emptied file ""`, "localetc symlink -> /etc"}, nil},
	{"HardlinkRelative", [][]Item{etc(D("breakouts"), S("breakouts/d1", "../../etc"), H("breakouts/mypasswd", "/breakouts/d1/passwd"))},
		[]string{"breakouts dir", "breakouts/d1 symlink -> ../../etc", `breakouts/mypasswd file "inside"`, "etc dir 0770", `etc/passwd file "inside" = breakouts/mypasswd`}, nil},
	{"HardlinkDownAndOut", [][]Item{etc(D("breakouts"), D("downandout"), S("breakouts/d1", "../downandout/../../etc"), H("breakouts/mypasswd", "/breakouts/d1/passwd"))},
		[]string{"breakouts dir", "breakouts/d1 symlink -> ../downandout/../../etc", `breakouts/mypasswd file "inside"`, "downandout dir", "etc dir 0770", `etc/passwd file "inside" = breakouts/mypasswd`}, nil},
	{"HardlinkAbsolute", [][]Item{etc(S("localetc", "/etc"), H("localpasswd", "/localetc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc symlink -> /etc", `localpasswd file "inside" = etc/passwd`}, nil},
	{"HardlinkRelativeLong", [][]Item{etc(S("localetc", "../../../../../../../etc"), H("localpasswd", "/localetc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc symlink -> ../../../../../../../etc", `localpasswd file "inside" = etc/passwd`}, nil},
	{"HardlinkRelativeUpAndOut", [][]Item{etc(S("localetc", "upandout/../../../etc"), H("localpasswd", "/localetc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc symlink -> upandout/../../../etc", `localpasswd file "inside" = etc/passwd`}, nil},
	{"HardlinkDirectRelative", [][]Item{etc(H("localpasswd", "../../../../../etc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, `localpasswd file "inside" = etc/passwd`}, nil},
	{"HardlinkDirectAbsolute", [][]Item{etc(H("localpasswd", "/etc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, `localpasswd file "inside" = etc/passwd`}, nil},
	{"SymlinkParentDirectory", [][]Item{etc(S("..", "/etc/"), H("localpasswd", "/etc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, `localpasswd file "inside" = etc/passwd`}, nil},
	{"SymlinkEmptyFilename", [][]Item{etc(S("", "/etc/"), H("localpasswd", "/etc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, `localpasswd file "inside" = etc/passwd`}, nil},
	{"SymlinkParentRelative", [][]Item{etc(S("localetc/sub/..", "/etc/"), H("/localetc/localpasswd", "/etc/passwd"))},
		[]string{"etc dir 0770", `etc/localpasswd file "inside"`, `etc/passwd file "inside" = etc/localpasswd`, "localetc symlink -> /etc/"}, nil},
	{"SymlinkSlashEnded", [][]Item{etc(D("localetc/").Mode(0o770), H("/localetc/localpasswd", "/etc/passwd"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc dir 0770", `localetc/localpasswd file "inside" = etc/passwd`}, nil},
	{"SymlinkOverrideDirectory", [][]Item{etc(D("localetc")), {S("localetc", "/etc"), H("/localetc/localpasswd", "/etc/passwd")}},
		[]string{"etc dir 0770", `etc/localpasswd file "inside"`, `etc/passwd file "inside" = etc/localpasswd`, "localetc symlink -> /etc"}, nil},
	{"SymlinkOverrideDirectoryRelative", [][]Item{etc(D("localetc")), {S("localetc", "../../etc"), H("/localetc/localpasswd", "/etc/passwd")}},
		[]string{"etc dir 0770", `etc/localpasswd file "inside"`, `etc/passwd file "inside" = etc/localpasswd`, "localetc symlink -> ../../etc"}, nil},
	{"DirectoryOverrideSymlink", [][]Item{etc(S("localetc", "/etc")), {D("/localetc/"), H("/localetc/localpasswd", "/etc/passwd")}},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc dir", `localetc/localpasswd file "inside" = etc/passwd`}, nil},
	{"DirectoryOverrideSymlinkAndHardlink", [][]Item{etc(S("localetc", "etc"), H("/localetc/localpasswd", "/etc/passwd")),
		{D("/localetc/"), F("/localetc/localpasswd", "different")}},
		[]string{"etc dir 0770", `etc/localpasswd file "inside"`, `etc/passwd file "inside" = etc/localpasswd`, "localetc dir", `localetc/localpasswd file "different"`}, nil},
	{"WhiteoutRootParent", [][]Item{etc(), {W(".wh...")}}, nil, errdefs.ErrFailedPrecondition},
	{"WhiteoutParent", [][]Item{etc(), {W("etc/.wh...")}}, nil, errdefs.ErrFailedPrecondition},
	{"WhiteoutRoot", [][]Item{etc(), {W(".wh..")}}, nil, errdefs.ErrFailedPrecondition},
	{"WhiteoutCurrentDirectory", [][]Item{etc(), {W("etc/.wh..")}}, nil, errdefs.ErrFailedPrecondition},
	{"WhiteoutSymlink", [][]Item{etc(S("localetc", "/etc")), {W(".wh.localetc")}},
		[]string{"etc dir 0770", `etc/passwd file "inside"`}, nil},
	{"WhiteoutSymlinkPath", [][]Item{etc(F("etc/whitedout", "ahhhh whiteout"), S("localetc", "/etc")), {W("localetc/.wh.whitedout")}},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc symlink -> /etc"}, nil},
	{"WhiteoutDirectoryName", [][]Item{etc(F("etc/whitedout", "ahhhh whiteout"), S("localetc", "/etc")), {F(".wh.etc/somefile", "non-empty")}},
		[]string{".wh.etc dir @0", `.wh.etc/somefile file "non-empty"`, "etc dir 0770", `etc/passwd file "inside"`,
			`etc/whitedout file "ahhhh whiteout"`, "localetc symlink -> /etc"}, nil},
	{"WhiteoutDeadSymlinkParent", [][]Item{etc(S("localetc", "/dne")), {W("localetc/.wh.etc")}},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localetc symlink -> /dne"}, nil},
	{"WhiteoutRelativePath", [][]Item{etc(S("localetc", "/dne")), {W("dne/../.wh.etc")}},
		[]string{"localetc symlink -> /dne"}, nil},
	{"WhiteoutOpaque", [][]Item{etc(F("etc/shadow", "root:secret").Mode(0o600)), {W("etc/.wh..wh..opq").Mode(0o600), F("etc/group", "all groups")}},
		[]string{"etc dir 0770", `etc/group file "all groups"`}, nil},
	{"WhiteoutOpaqueOutOfOrder", [][]Item{etc(), {F("etc/group", "all groups"), W("etc/.wh..wh..opq").Mode(0o600)}},
		[]string{"etc dir 0770", `etc/group file "all groups"`}, nil},
	{"SymlinkOverridePath", [][]Item{{D("foo"), D("foo/tmp"), F("foo/tmp/breakout", "012"), S("foo", "/"), F("foo/tmp/breakout", "345"),
		D("foo"), D("foo/tmp"), F("foo/tmp/breakout", "678")}},
		[]string{"foo dir", "foo/tmp dir", `foo/tmp/breakout file "678"`, "tmp dir @0", `tmp/breakout file "345"`}, nil},
	{"HardlinkSymlinkBeforeCreateTarget", [][]Item{{D("etc").Mode(0o770), S("localpasswd", "/etc/passwd"), H("localpasswd-dup", "localpasswd"),
		F("/etc/passwd", "after")}},
		[]string{"etc dir 0770", `etc/passwd file "after"`, "localpasswd symlink -> /etc/passwd", "localpasswd-dup symlink -> /etc/passwd = localpasswd"}, nil},
	{"HardlinkSymlinkRelative", [][]Item{etc(S("passwdlink", "../../../../../etc/passwd"), H("localpasswd", "/passwdlink"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localpasswd symlink -> ../../../../../etc/passwd", "passwdlink symlink -> ../../../../../etc/passwd = localpasswd"}, nil},
	{"HardlinkSymlinkAbsolute", [][]Item{etc(S("passwdlink", "/etc/passwd"), H("localpasswd", "/passwdlink"))},
		[]string{"etc dir 0770", `etc/passwd file "inside"`, "localpasswd symlink -> /etc/passwd", "passwdlink symlink -> /etc/passwd = localpasswd"}, nil},
	{"HardlinkSymlinkChmod", [][]Item{{S("/canary/private", "/canary/secret"), H("sketchylink", "/canary/private").Mode(0o777)}},
		[]string{"canary dir @0", "canary/private symlink -> /canary/secret", "sketchylink symlink -> /canary/secret = canary/private"}, nil},
}

func TestBreakouts(t *testing.T) {
	requireMounts(t)
	for _, row := range breakoutRows {
		t.Run(row.testName, row.run)
	}
}
