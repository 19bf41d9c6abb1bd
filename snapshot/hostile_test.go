package snapshot_test

import (
	"testing"

	"github.com/containerd/errdefs"

	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// hostileRows span layers: what one leaves lying about, another steps on. /canary is outside (TestWorld), so that
// here it is only a name inside.
var hostileRows = []stackRow{
	{"A2 a symlink out and a file", [][]Item{{S("e", "/canary")}, {F("e/secret", "pwned")}},
		[]string{"canary dir @0", `canary/secret file "pwned"`, "e symlink -> /canary"}, nil},
	{"A2 up and out", [][]Item{{S("e", "../../../../canary")}, {F("e/secret", "pwned")}},
		[]string{"canary dir @0", `canary/secret file "pwned"`, "e symlink -> ../../../../canary"}, nil},
	{"A3 a chain over layers", [][]Item{{S("a", "b")}, {S("b", "c")}, {S("c", "/")}, {F("a/canary/secret", "pwned")}},
		[]string{"a symlink -> b", "b symlink -> c", "c symlink -> /", "canary dir @0", `canary/secret file "pwned"`}, nil},
	{"A3 a loop over layers", [][]Item{{S("a", "b")}, {S("b", "a")}, {F("a/x", "1")}},
		[]string{"a dir @0", `a/x file "1"`, "b symlink -> a"}, nil},
	{"A5 a file behind a symlink of a lower layer", [][]Item{{S("etc", "/canary")}, {F("etc/passwd", "pwned")}},
		[]string{"canary dir @0", `canary/passwd file "pwned"`, "etc symlink -> /canary"}, nil},
	{"A5 a whiteout behind it", [][]Item{{S("etc", "/canary")}, {W("etc/.wh.victim")}},
		[]string{"etc symlink -> /canary"}, nil},
	{"A5 an opaque marker behind it", [][]Item{{S("etc", "/canary")}, {W("etc/.wh..wh..opq")}},
		[]string{"etc symlink -> /canary"}, nil},
	{"A5 a hard link to what is behind it", [][]Item{{S("etc", "/canary")}, {H("x", "etc/secret").Mode(0o777)}}, nil, errdefs.ErrFailedPrecondition},
	{"A5 a hard link behind it", [][]Item{{S("etc", "/canary"), F("f", "1")}, {H("etc/secret", "f").Mode(0o4777)}},
		[]string{"canary dir @0", `canary/secret file 4777 "1"`, "etc symlink -> /canary", `f file 4777 "1" = canary/secret`}, nil},
	{"A5 a directory behind it", [][]Item{{S("etc", "/")}, {D("etc/canary").Mode(0o777).Owner(1, 1)}},
		[]string{"canary dir 0777 1:1", "etc symlink -> /"}, nil},
	{"A5 a device behind it", [][]Item{{S("etc", "/canary")}, {C("etc/victim", 1, 3), P("etc/private")}},
		[]string{"canary dir @0", "canary/private fifo", "canary/victim char 1:3", "etc symlink -> /canary"}, nil},
	{"A5 up from where it leads", [][]Item{{S("etc", "/canary/etc")}, {S("up", "etc/../.."), F("up/canary/secret", "pwned")}},
		[]string{"canary dir @0", `canary/secret file "pwned"`, "etc symlink -> /canary/etc", "up symlink -> etc/../.."}, nil},
	{"A6 a hard link to a path that is only outside", [][]Item{{F("a", "1")}, {H("h", "/canary/secret")}}, nil, errdefs.ErrFailedPrecondition},
	{"A6 up and out", [][]Item{{F("a", "1")}, {H("h", "../../canary/secret")}}, nil, errdefs.ErrFailedPrecondition},
	{"A7 a hard link to a lower symlink", [][]Item{{S("s", "/canary/secret")}, {H("h", "s").Mode(0o4777).Owner(1, 1).At(5, 0)}},
		[]string{"h symlink 1:1 @5 -> /canary/secret", "s symlink 1:1 @5 -> /canary/secret = h"}, nil},
	{"A8 a file in place of a link to a symlink", [][]Item{{S("p", "/canary/etc/passwd")}, {H("q", "p")}, {F("q", "after"), F("p", "after")}},
		[]string{`p file "after"`, `q file "after"`}, nil},
	{"A9 over layers", [][]Item{{D("foo"), F("foo/t", "1")}, {S("foo", "/")}, {F("foo/t", "2")}, {D("foo")}, {F("foo/t", "3")}},
		[]string{"foo dir", `foo/t file "3"`, `t file "2"`}, nil},
	{"A9 over layers with a canary", [][]Item{{D("foo"), F("foo/secret", "1")}, {S("foo", "/canary"), F("foo/secret", "2")}, {F("foo/etc/passwd", "3")},
		{D("foo"), F("foo/secret", "4")}},
		[]string{"canary dir @0", "canary/etc dir @0", `canary/etc/passwd file "3"`, `canary/secret file "2"`, "foo dir", `foo/secret file "4"`}, nil},
	{"A12 times and modes of what became a symlink", [][]Item{{D("a").Mode(0o700).At(1, 0)}, {D("a").Mode(0o777).At(2, 0), S("a", "/canary")}, {F("a/x", "1")}},
		[]string{"a symlink -> /canary", "canary dir @0", `canary/x file "1"`}, nil},
	{"A13 a symlink is replaced", [][]Item{{S("d", "/canary")}, {F("d", "1")}},
		[]string{`d file "1"`}, nil},
	{"A13 a symlink is removed", [][]Item{{S("d", "/canary")}, {W(".wh.d")}}, nil, nil},
	{"A13 a directory with symlinks is made opaque", [][]Item{{D("d"), S("d/l", "/canary"), S("d/m", "/")}, {D("d"), W("d/.wh..wh..opq")}},
		[]string{"d dir"}, nil},
	{"A13 a symlink becomes an opaque directory", [][]Item{{S("d", "/canary")}, {D("d"), W("d/.wh..wh..opq"), F("d/secret", "1")}},
		[]string{"d dir", `d/secret file "1"`}, nil},
	{"A13 a directory with symlinks becomes a file", [][]Item{{D("d"), S("d/l", "/canary"), D("d/e"), S("d/e/l", "../../../canary")}, {F("d", "1")}},
		[]string{`d file "1"`}, nil},
	{"A14 magic links", [][]Item{{S("p", "/proc/self/root/canary"), S("q", "/proc/self/cwd")}, {F("p/secret", "1"), F("q/x", "2")}},
		[]string{"p symlink -> /proc/self/root/canary", "proc dir @0", "proc/self dir @0", "proc/self/cwd dir @0", `proc/self/cwd/x file "2"`, "proc/self/root dir @0", "proc/self/root/canary dir @0", `proc/self/root/canary/secret file "1"`, "q symlink -> /proc/self/cwd"}, nil},
	{"A18 a device and a fifo are replaced", [][]Item{{P("x"), C("y", 1, 3)}, {F("x", "data"), F("y", "data")}},
		[]string{`x file "data"`, `y file "data"`}, nil},
	{"A19 a global header over a lower file", [][]Item{{F("etc/passwd", "1")}, {G("path", "etc/passwd")}},
		[]string{"etc dir @0", `etc/passwd file "1"`}, nil},
	{"C1 opaque by xattr", [][]Item{{D("d"), F("d/a", "1")}, {D("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.opaque", "y")}},
		[]string{"d dir", `d/a file "1"`}, nil},
	{"C1 a redirect", [][]Item{{D("d"), F("d/a", "1"), D("e"), F("e/b", "2")}, {D("d").Xattr("trusted.overlay.redirect", "/e").Xattr("user.overlay.redirect", "/e")}},
		[]string{"d dir", `d/a file "1"`, "e dir", `e/b file "2"`}, nil},
	{"C1 metacopy", [][]Item{{F("f", "1"), F("g", "2")}, {F("f", "").Xattr("trusted.overlay.metacopy", "").Xattr("trusted.overlay.redirect", "/g")}},
		[]string{`f file ""`, `g file "2"`}, nil},
	{"C1 escaped", [][]Item{{D("d"), F("d/a", "1")}, {D("d").Xattr("trusted.overlay.overlay.opaque", "y")}},
		[]string{"d dir", `d/a file "1"`}, nil},
	{"C1 on the root", [][]Item{{F("a", "1")}, {D("./").Xattr("trusted.overlay.opaque", "y").Xattr("trusted.overlay.redirect", "/x")}},
		[]string{". dir", `a file "1"`}, nil},
	{"C2 whiteout by xattr", [][]Item{{D("d"), F("d/a", "1")}, {D("d").Xattr("trusted.overlay.opaque", "x"),
		F("d/a", "").Xattr("trusted.overlay.whiteout", "y").Xattr("user.overlay.whiteout", "y")}},
		[]string{"d dir", `d/a file ""`}, nil},
	{"C2 whiteout by device", [][]Item{{F("a", "1")}, {C("a", 0, 0)}}, nil, nil},
	{"C2 a lower symlink to the opaque marker", [][]Item{{S("s", ".wh..wh..opq"), F("f", "1")}, {F("s/x", "1")}}, nil,
		errdefs.ErrFailedPrecondition},
	{"C2 a lower symlink below AUFS's own", [][]Item{{D("d"), S("s", "d/.wh..wh.plnk/e")}, {F("s/x", "1")}}, nil,
		errdefs.ErrFailedPrecondition},
	{"C3 a device over a file and back", [][]Item{{F("a", "1")}, {B("a", 8, 0)}, {H("b", "a")}, {F("a", "2")}},
		[]string{`a file "2"`, "b block 8:0"}, nil},
	{"C4 setuid by a hard link's header", [][]Item{{F("a", "1")}, {H("b", "a").Mode(0o4755).Owner(0, 0)}},
		[]string{`a file 4755 "1"`, `b file 4755 "1" = a`}, nil},
	{"E26 behind a symlink to the root", [][]Item{{S("r", "/"), F("x", "1")}, {F("r/canary/secret", "pwned"), W("r/.wh.x")}},
		[]string{"canary dir @0", `canary/secret file "pwned"`, "r symlink -> /"}, nil},
}

func TestHostile(t *testing.T) {
	requireMounts(t)
	for _, row := range hostileRows {
		t.Run(row.testName, row.run)
	}
}
