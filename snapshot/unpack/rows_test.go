package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// Rows are named after the cases of docs/cases.md. docs/adr/0003-layer-application.md has the
// decisions where the specification leaves a choice. /CANARY in names and targets stands for the
// path of the directory beside the root.
var tables = [][]row{pathRows, parserRows, overlayRows, whiteoutRows, linkRows, treeRows, attrRows}

func items(i ...u.Item) []u.Item { return i }

var pathRows = []row{
	{id: "A1 dotdot", items: items(u.F("../x", "1")), want: []string{`x file "1"`}},
	{id: "A1 many dotdot", items: items(u.F("../../../../tmp/x", "1")), want: []string{`tmp dir @0`, `tmp/x file "1"`}},
	{id: "A1 absolute", items: items(u.F("/abs/x", "1")), want: []string{`abs dir @0`, `abs/x file "1"`}},
	{id: "A1 inner dotdot", items: items(u.F("a/../../x", "1")), want: []string{`x file "1"`}},
	{id: "A1 only dotdot", items: items(u.F("..", "1")), want: nil, notes: "empty"},
	{id: "A1 slashes", items: items(u.F(".//..//x", "1")), want: []string{`x file "1"`}},
	{id: "A1 canary", items: items(u.F("../canary/secret", "1")),
		want: []string{`canary dir @0`, `canary/secret file "1"`}},
	{id: "A2 absolute symlink", items: items(u.S("e", "/tmp"), u.F("e/pwn", "1")),
		want: []string{`e symlink -> /tmp`, `tmp dir @0`, `tmp/pwn file "1"`}, notes: "needs implied:tmp"},
	{id: "A2 relative symlink", items: items(u.S("e", "../../../../tmp"), u.F("e/pwn", "1")),
		want: []string{`e symlink -> ../../../../tmp`, `tmp dir @0`, `tmp/pwn file "1"`}},
	{id: "A2 to the canary", items: items(u.S("e", "/CANARY"), u.F("e/secret", "1"), u.F("e/etc/passwd", "2")),
		safe: true},
	{id: "A2 up to the canary", items: items(u.S("e", "../canary"), u.F("e/secret", "1")),
		want: []string{`canary dir @0`, `canary/secret file "1"`, `e symlink -> ../canary`}},
	{id: "A3 chain", items: items(u.S("a", "b"), u.S("b", "c"), u.S("c", "/"), u.F("a/etc/x", "1")),
		want: []string{`a symlink -> b`, `b symlink -> c`, `c symlink -> /`, `etc dir @0`, `etc/x file "1"`}},
	{id: "A3 loop", items: items(u.S("l", "l"), u.F("l/x", "1")), err: "too many levels of symlinks"},
	{id: "A3 loop of two", items: items(u.S("a", "b/x"), u.S("b", "a/x"), u.F("a/f", "1")), err: "too many levels"},
	{id: "A3 40 deep", items: append(chain(40), u.F("l0/x", "1")),
		want: append(chainLines(40), `t dir`, `t/x file "1"`)},
	{id: "A3 41 deep", items: append(chain(41), u.F("l0/x", "1")), err: "too many levels of symlinks"},
	{id: "A4 dot symlink", items: items(u.S(".", "/tmp")), want: nil, notes: "empty"},
	{id: "A4 slash-dot symlink", items: items(u.S("./", "/"), u.F("a", "1")), want: []string{`a file "1"`}},
	{id: "A4 dot file", items: items(u.F(".", "body"), u.F("a", "1")), want: []string{`a file "1"`}},
	{id: "A4 dot-slash file", raw: bytes.Join([][]byte{header("./", tar.TypeReg, 5, nil), make([]byte, 512),
		absurdHeader(nil)}, nil),
		want: []string{`f file @0 ""`}},
	{id: "A4 empty name", items: items(u.S("", "/etc"), u.D("").Mode(0o700), u.F("", "body"), u.F("a", "1")),
		want: []string{`a file "1"`}},
	{id: "A4 slash", items: items(u.S("/", "x"), u.H("a/..", "b"), u.C(".", 1, 3)), want: nil, notes: "empty"},
	{id: "A6 absolute hard link", items: items(u.H("h", "/CANARY/secret")), safe: true},
	{id: "A6 absolute hard link in the layer", items: items(u.F("etc/shadow", "in"), u.H("h", "/etc/shadow")),
		want: []string{`etc dir @0`, `etc/shadow file "in"`, `h file "in" = etc/shadow`}},
	{id: "A6 hard link up", items: items(u.F("etc/shadow", "in"), u.H("h", "../../etc/shadow")),
		want: []string{`etc dir @0`, `etc/shadow file "in"`, `h file "in" = etc/shadow`}},
	{id: "A6 hard link to a lower layer only", items: items(u.H("h", "../canary/secret").Mode(0o777)),
		want: nil, notes: "needs link:h=>canary/secret:777"},
	{id: "A7 hard link to a symlink", items: items(u.S("s", "/CANARY/secret"), u.H("h", "s").Mode(0o777)), safe: true},
	{id: "A7 hard link to a symlink, inside", items: items(u.S("s", "/etc"), u.H("h", "s").Mode(0o777).At(5, 0)),
		want: []string{`h symlink @5 -> /etc`, `s symlink @5 -> /etc = h`}},
	{id: "A8", items: items(u.S("p", "/CANARY/etc/passwd"), u.H("q", "p"), u.F("etc/passwd", "after")), safe: true},
	{id: "A8 write over the link", items: items(u.S("p", "../canary/secret"), u.H("q", "p"), u.F("q", "after")),
		want: []string{`p symlink -> ../canary/secret`, `q file "after"`}},
	{id: "A9", items: items(u.D("foo"), u.F("foo/t", "1"), u.S("foo", "/"), u.F("foo/t", "2"), u.D("foo"),
		u.F("foo/t", "3")),
		want: []string{`foo dir opaque`, `foo/t file "3"`, `t file "2"`}, notes: "whiteouts"},
	{id: "A12", items: items(u.D("a").Mode(0o700).At(1, 0), u.S("a", "/CANARY")), safe: true},
	{id: "A12 inside", items: items(u.D("a").Mode(0o700).At(1, 0), u.S("a", "../canary")),
		want: []string{`a symlink -> ../canary`}},
	{id: "A13", items: items(u.D("d"), u.S("d/l", "/CANARY"), u.D("d/e"), u.F("d/e/f", "1"), u.F("d", "file")),
		want: []string{`d file "file"`}},
	{id: "A14", items: items(u.S("p", "/proc/self/root/CANARY"), u.F("p/x", "1"), u.S("q", "/proc/1/root"),
		u.F("q/y", "2")),
		safe: true},
	{id: "A14 inside", items: items(u.S("p", "/proc/self/cwd"), u.F("p/x", "1")),
		want: []string{`p symlink -> /proc/self/cwd`, `proc dir @0`, `proc/self dir @0`, `proc/self/cwd dir @0`,
			`proc/self/cwd/x file "1"`}},
	{id: "A16 names",
		items: items(u.F("a\nb", "1"), u.F("\x1b[31m", "2"), u.F("\xff\xfe", "3"), u.F(`a\..\b`, "4"),
			u.F(" lead", "5"),
			u.F("*", "6")),
		want: []string{`"\x1b[31m" file "2"`, `" lead" file "5"`, `* file "6"`, `"a\nb" file "1"`,
			`"a\\..\\b" file "4"`,
			`"\xff\xfe" file "3"`}},
	{id: "A16 255", items: items(u.F(strings.Repeat("n", 255), "1")),
		want: []string{strings.Repeat("n", 255) + ` file "1"`}},
	{id: "A16 256", items: items(u.F(strings.Repeat("n", 256), "1")), err: "component of more than 255"},
	{id: "A16 256 in a parent", items: items(u.F(strings.Repeat("n", 256)+"/x", "1")),
		err: "component of more than 255"},
	{id: "A16 path of 4096", items: items(u.D(strings.Repeat("/ab", 1366)[1:])), err: "path of 4097 bytes"},
	{id: "A17", items: append(deepDirs(16, 247),
		u.S("s", strings.Repeat("d", 247)+strings.Repeat("/"+strings.Repeat("d", 247), 15)),
		u.S("s/"+strings.Repeat("u", 247), ".."), u.F("s/"+strings.Repeat("u", 247)+"/../../../x", "1")), safe: true},
	{id: "A17 resolves beyond the limit", items: append(deepDirs(16, 247), u.S("s", strings.Repeat("d", 247)+
		strings.Repeat("/"+strings.Repeat("d", 247), 15)), u.F("s/"+strings.Repeat("u", 247), "1")),
		err: "more than 4095 bytes"},
	{id: "A18", items: items(u.P("x"), u.F("x", "data")), want: []string{`x file "data"`}},
	{id: "A18 device", items: items(u.C("x", 1, 3), u.F("x", "data")), want: []string{`x file "data"`}},
	{id: "A19", items: items(u.G("path", "etc/passwd"), u.F("a", "1")), want: []string{`a file "1"`}},
	{id: "A20 .wh.", items: items(u.W(".wh.")), err: "whiteout of nothing"},
	{id: "A20 .wh..", items: items(u.W(".wh..")), err: "whiteout of nothing"},
	{id: "A20 .wh...", items: items(u.W(".wh...")), err: "whiteout of nothing"},
	{id: "A20 etc/.wh...", items: items(u.W("etc/.wh...")), err: "whiteout of nothing"},
	{id: "A20 .wh./x", items: items(u.W(".wh./x")), want: []string{`.wh. dir @0`, `.wh./x file ""`}},
}

// chain returns n symlinks, from l0 to t, each of which leads to the next.
func chain(n int) []u.Item {
	out := items(u.D("t"))
	for i := range n {
		target := fmt.Sprintf("l%d", i+1)
		if i == n-1 {
			target = "t"
		}
		out = append(out, u.S(fmt.Sprintf("l%d", i), target))
	}
	return out
}

func chainLines(n int) []string {
	var out []string
	for _, i := range sortedDecimals(n) {
		target := fmt.Sprintf("l%d", i+1)
		if i == n-1 {
			target = "t"
		}
		out = append(out, fmt.Sprintf("l%d symlink -> %s", i, target))
	}
	return out
}

// sortedDecimals returns the numbers below n (at most 100), sorted as text.
func sortedDecimals(n int) []int {
	var out []int
	for i := range 10 {
		if i < n {
			out = append(out, i)
		}
		for j := i * 10; i > 0 && j < i*10+10 && j < n; j++ {
			out = append(out, j)
		}
	}
	return out
}

func deepDirs(depth, length int) []u.Item {
	var out []u.Item
	path := ""
	for range depth {
		path += strings.Repeat("d", length)
		out = append(out, u.D(path))
		path += "/"
	}
	return out
}

var parserRows = []row{
	{id: "B1 size in PAX only", raw: paxSize("1024", 0),
		want: []string{fmt.Sprintf("f file @0 %s", big1024), `g file @0 ""`}},
	{id: "B2 malformed PAX", raw: paxRecord("30 path=short\n"), err: "invalid tar header"},
	{id: "B3 sparse map of absurd size", raw: absurdSparse(), safe: true},
	{id: "B4 size", raw: absurdHeader(func(h []byte) { copy(h[124:], "77777777777\x00") }), err: "ends in its middle"},
	{id: "B4 size beyond the limit",
		raw: absurdHeader(func(h []byte) { copy(h[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }),
		err: "more than 274877906944 bytes of files"},
	{id: "B4 size negative", raw: absurdHeader(func(h []byte) { copy(h[124:], bytes.Repeat([]byte{0xff}, 12)) }),
		err: "invalid tar header"},
	{id: "B4 uid 2^32", raw: absurdHeader(func(h []byte) { copy(h[108:], "\x80\x00\x00\x01\x00\x00\x00\x00") }),
		err: "out of range"},
	{id: "B4 uid -1", raw: absurdHeader(func(h []byte) { copy(h[108:], bytes.Repeat([]byte{0xff}, 8)) }),
		want: []string{`f file @0 ""`}},
	{id: "B4 uid -2", raw: absurdHeader(func(h []byte) { copy(h[108:], "\xff\xff\xff\xff\xff\xff\xff\xfe") }),
		want: []string{`f file 4294967294:0 @0 ""`}, confined: "uid 4294967294 has no place"},
	{id: "B4 uid -2 as 32 bits",
		raw:  absurdHeader(func(h []byte) { copy(h[108:], "\x80\x00\x00\x00\xff\xff\xff\xfe") }),
		want: []string{`f file 4294967294:0 @0 ""`}, confined: "uid 4294967294 has no place"},
	{id: "B4 gid -1 as 32 bits",
		raw:  absurdHeader(func(h []byte) { copy(h[116:], "\x80\x00\x00\x00\xff\xff\xff\xff") }),
		want: []string{`f file @0 ""`}},
	{id: "B4 uid below 32 bits",
		raw: absurdHeader(func(h []byte) { copy(h[108:], "\xff\xff\xff\xff\x7f\xff\xff\xff") }),
		err: "out of range"},
	{id: "B4 PAX uid", raw: paxRecord("10 uid=-2\n10 gid=-1\n"), want: []string{`f file 4294967294:0 @0 ""`},
		confined: "uid 4294967294 has no place"},
	{id: "B4 PAX uid 2^32", raw: paxRecord("18 uid=4294967296\n"), err: "out of range"},
	{id: "B4 mode", raw: absurdHeader(func(h []byte) { copy(h[100:], "7777777\x00") }),
		want: []string{`f file 7777 @0 ""`},
		user: []string{`f file 3777 @0 ""`}},
	{id: "B4 time", items: items(u.F("a", "").Record("mtime", "1e300")), safe: true},
	{id: "B4 major that the kernel would cut", items: items(u.C("a", 4096, 0)), err: "out of range"},
	{id: "B4 minor that the kernel would cut", items: items(u.C("a", 0, 1<<20)), err: "out of range"},
	{id: "B5 stream limit", items: items(u.F("a", strings.Repeat("x", 100<<10))),
		limits: tarlayer.Limits{Bytes: 64 << 10},
		err:    "more than 65536 bytes"},
	{id: "B8 entry limit", items: items(u.F("a", ""), u.F("b", ""), u.F("c", "")), limits: tarlayer.Limits{Entries: 2},
		err: "more than 2 entries"},
	{id: "B8 implied count", items: items(u.F("a/b/c", "")), limits: tarlayer.Limits{Entries: 2},
		err: "more than 2 entries"},
	{id: "B10 path limit", items: items(u.F("a/b/c", "")), limits: tarlayer.Limits{Path: 4},
		err: "path of 5 bytes, more than 4"},
	{id: "B10 metadata limit", items: items(u.F("aaaa", ""), u.F("bbbb", "")), limits: tarlayer.Limits{Metadata: 7},
		err: "more than 7 bytes of paths"},
	{id: "B10 xattr limit", items: items(u.F("a", "").Xattr("user.x", "12345")), limits: tarlayer.Limits{Xattr: 4},
		err: "5 bytes, more than 4"},
	{id: "B10 xattr of 64 KiB and one", items: items(u.F("a", "").Xattr("user.x", strings.Repeat("x", 65537))),
		err: "65537 bytes"},
	{id: "B10 deep", items: items(u.D(strings.Repeat("/a", 2047)[1:]), u.F("a", "")), want: []string{`a file ""`}},
	{id: "B11 same path", items: repeated(500), want: []string{`a file "499"`}},
	{id: "unknown type", raw: absurdHeader(func(h []byte) { h[156] = 'Z' }), err: "unknown type"},
	{id: "not a tar", raw: bytes.Repeat([]byte("x"), 2048), err: "invalid tar header"},
}

var big1024 = "1024 bytes 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

func repeated(n int) []u.Item {
	var out []u.Item
	for i := range n {
		out = append(out, u.F("a", fmt.Sprint(i)))
	}
	return out
}

// header returns a ustar header, made by hand.
func header(name string, typ byte, size int, change func([]byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], "00000000000\x00")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	if change != nil {
		change(h)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func absurdHeader(change func([]byte)) []byte {
	return append(header("f", tar.TypeReg, 0, change), make([]byte, 1024)...)
}

// paxRecord returns an extended header with this text, followed by a file.
func paxRecord(text string) []byte {
	out := header("x", tar.TypeXHeader, len(text), nil)
	out = append(out, text...)
	out = append(out, make([]byte, 512-len(text)%512)...)
	return append(out, absurdHeader(nil)...)
}

// paxSize returns a file whose size in the PAX record differs from that in the header, and whose body looks like
// an entry.
func paxSize(pax string, size int) []byte {
	text := fmt.Sprintf("13 size=%s\n", pax)
	out := header("x", tar.TypeXHeader, len(text), nil)
	out = append(out, text...)
	out = append(out, make([]byte, 512-len(text))...)
	out = append(out, header("f", tar.TypeReg, size, nil)...)
	out = append(out, make([]byte, 1024)...)
	return append(append(out, header("g", tar.TypeReg, 0, nil)...), make([]byte, 1024)...)
}

// absurdSparse returns a sparse file that claims 10 TiB of holes.
func absurdSparse() []byte {
	text := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n38 GNU.sparse.realsize=10995116277760\n"
	out := header("x", tar.TypeXHeader, len(text), nil)
	out = append(out, text...)
	out = append(out, make([]byte, 512-len(text))...)
	out = append(out, header("f", tar.TypeReg, 512, nil)...)
	block := make([]byte, 512)
	copy(block, "1\n10995116277760\n0\n")
	return append(append(out, block...), make([]byte, 1024)...)
}

var overlayRows = []row{
	{id: "C1 directory", items: items(u.D("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.opaque", "y").
		Xattr("trusted.overlay.redirect", "/../../etc").Xattr("trusted.overlay.overlay.opaque", "y").Xattr("user.ok",
		"1")),
		want: []string{`d dir user.ok="1"`}},
	{id: "C1 file", items: items(u.F("f", "").Xattr("trusted.overlay.metacopy", "").Xattr("user.overlay.metacopy", "").
		Xattr("trusted.overlay.whiteout", "y")), want: []string{`f file ""`}},
	{id: "C1 root", items: items(u.D("./").Xattr("trusted.overlay.opaque", "y").At(0, 0)), want: nil,
		notes: "empty root"},
	{id: "C2 device 0:0", items: items(u.C("etc/passwd", 0, 0).Owner(1, 2).Xattr("trusted.x", "1")),
		want: []string{`etc dir @0 origin`, `etc/passwd whiteout`}, notes: "needs whiteouts implied:etc"},
	{id: "C2 device 0:0 over a file", items: items(u.F("a", "1"), u.C("a", 0, 0)),
		want: []string{`. dir @0 origin`, `a whiteout`}},
	{id: "C2 device 0:0 over a directory", items: items(u.D("d"), u.F("d/f", "1"), u.C("d", 0, 0)),
		want: []string{`. dir @0 origin`, `d whiteout`}},
	{id: "C2 device 0:0 and a file", items: items(u.C("a", 0, 0), u.F("a", "1")), want: []string{`a file "1"`}},
	{id: "C2 device 0:0 and a directory", items: items(u.C("d", 0, 0), u.F("d/f", "1")),
		want: []string{`d dir @0 opaque`, `d/f file "1"`}, notes: "whiteouts"},
	{id: "C2 device 0:0 and a marker", items: items(u.W(".wh.a"), u.C("a", 0, 0), u.C("b", 0, 0), u.W(".wh.b")),
		want: []string{`. dir @0 origin`, `a whiteout`, `b whiteout`}},
	{id: "C2 device 0:0 in an opaque directory", items: items(u.D("d"), u.W("d/.wh..wh..opq"), u.C("d/e/a", 0, 0)),
		want: []string{`d dir opaque`, `d/e dir @0`}},
	{id: "C2 hard link to a device 0:0", items: items(u.C("a", 0, 0), u.H("b", "a")),
		want: []string{`. dir @0 origin`, `a whiteout`, `b whiteout`}},
	{id: "C2 device 0:0 through a symlink",
		items: items(u.S("s", "/CANARY"), u.C("s/secret", 0, 0), u.C("s/etc", 0, 0)),
		safe:  true},
	{id: "C2 major that would wrap to 0:0", items: items(u.C("a", 1<<12, 0)), err: "out of range"},
	{id: "C2 minor that would wrap to 0:0", raw: absurdHeader(func(h []byte) {
		h[156] = tar.TypeChar
		copy(h[337:], "\x80\x00\x00\x01\x00\x00\x00\x00")
	}), err: "out of range"},
	{id: "C2 block 0:0", items: items(u.B("b", 0, 0)), want: []string{`b block 0:0`},
		user: []string{`. dir @0 origin`, `b whiteout`}},
	{id: "C3", items: items(u.D("dev"), u.B("dev/sda", 8, 0), u.C("dev/mem", 1, 1).Mode(0o640).Owner(0, 15),
		u.H("dev/m2", "dev/mem").Mode(0o640).Owner(0, 15)),
		want: []string{`dev dir`, `dev/m2 char 0640 0:15 1:1`, `dev/mem char 0640 0:15 1:1 = dev/m2`,
			`dev/sda block 8:0`},
		user: []string{`dev dir origin`, `dev/m2 whiteout`, `dev/mem whiteout`, `dev/sda whiteout`}},
	{id: "C4", items: items(u.F("su", "s").Mode(0o4755).Owner(1000, 1000)),
		want: []string{`su file 4755 1000:1000 "s"`},
		user: []string{`su file 0755 "s"`}},
	{id: "C5 capability",
		items: items(u.F("ping", "p").Mode(0o755).Owner(1, 2).Xattr("security.capability", capability)),
		want:  []string{fmt.Sprintf(`ping file 0755 1:2 "p" security.capability=%q`, capability)}},
	{id: "C5 revision 3 of this namespace",
		items: items(u.F("ping", "p").Xattr("security.capability", capabilityFor(0))),
		want:  []string{fmt.Sprintf(`ping file "p" security.capability=%q`, capability)}},
	{id: "C5 revision 3 of another", items: items(u.F("ping", "p").Xattr("security.capability", capabilityFor(1000))),
		want: []string{fmt.Sprintf(`ping file "p" security.capability=%q`, capabilityFor(1000))}},
	{id: "C5 malformed", items: items(u.F("ping", "p").Xattr("security.capability", "short")),
		err:  "security.capability",
		user: []string{`ping file "p"`}},
	{id: "C6 dropped",
		items: items(u.F("f", "").Xattr("security.selinux", "x").Xattr("security.ima", "x").Xattr("security.evm", "x").
			Xattr("system.nfs4_acl", "x").Xattr("com.apple.quarantine", "x")), want: []string{`f file ""`}},
	{id: "C6 trusted", items: items(u.F("f", "").Xattr("trusted.x", "1")), want: []string{`f file "" trusted.x="1"`}},
	{id: "C6 user on others", items: items(u.S("s", "t").Xattr("user.x", "1"), u.P("p").Xattr("user.x", "1")),
		want: []string{`p fifo`, `s symlink -> t`}},
	{id: "C6 trusted on others", items: items(u.S("s", "t").Xattr("trusted.x", "1"), u.P("p").Xattr("trusted.x", "2")),
		want: []string{`p fifo trusted.x="2"`, `s symlink -> t trusted.x="1"`}},
	{id: "C6 malformed ACL", items: items(u.F("f", "").Xattr("system.posix_acl_access", "x")), err: "posix_acl_access"},
	{id: "C6 ACL of version 1", items: items(u.F("f", "").Xattr("system.posix_acl_access", "\x01\x00\x00\x00")),
		err: "version 1"},
	{id: "C6 default ACL of version 3", items: items(u.D("d").Xattr("system.posix_acl_default", "\x03"+acl[1:])),
		err: "version 3"},
	{id: "C6 ACL of version 2 in another byte order", items: items(u.F("f", "").Xattr("system.posix_acl_access",
		"\x00\x00\x00\x02"+acl[4:])),
		err: "version 33554432"},
	{id: "C7", items: items(u.F("f", "").Record("LIBARCHIVE.flags", "schg").Record("SCHILY.fflags", "schg")),
		want: []string{`f file ""`}},
}

// capability is cap_net_raw+ep, version 2.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var whiteoutRows = []row{
	{id: "E1", items: items(u.W(".wh.a")), want: []string{`. dir @0 origin`, `a whiteout`}, notes: "whiteouts"},
	{id: "E1 of the longest names", items: items(u.W(".wh."+long(255)), u.W(".wh."+long(252)), u.D("d"),
		u.W("d/.wh."+long(254))),
		want: []string{`. dir @0 origin`, `d dir origin`, `d/` + long(254) + ` whiteout`, long(252) + ` whiteout`,
			long(255) + ` whiteout`}},
	{id: "E1 of a name that is too long", items: items(u.W(".wh." + long(256))), err: "component of more than 255"},
	{id: "E1 of the longest path", items: items(u.W(strings.Repeat(long(255)+"/", 15)+".wh."+long(255)),
		u.F(long(255), "")),
		want: []string{long(255) + ` file ""`}},
	{id: "E1 of a path that is too long", items: items(u.W(strings.Repeat(long(255)+"/", 15) + "n/.wh." + long(255))),
		err: "more than 4095"},
	{id: "E1 in a directory", items: items(u.D("d"), u.W("d/.wh.a")), want: []string{`d dir origin`, `d/a whiteout`}},
	{id: "E3", items: items(u.W(".wh.a"), u.F("a", "2")), want: []string{`a file "2"`}, notes: ""},
	{id: "E4", items: items(u.F("a", "2"), u.W(".wh.a")), want: []string{`a file "2"`}},
	{id: "E4 symlink", items: items(u.S("a", "b"), u.W(".wh.a")), want: []string{`a symlink -> b`}},
	{id: "E5", items: items(u.W(".wh.d"), u.D("d"), u.F("d/new", "n")),
		want:  []string{`d dir opaque`, `d/new file "n"`},
		notes: "whiteouts"},
	{id: "E5 after", items: items(u.D("d"), u.F("d/new", "n"), u.W(".wh.d")),
		want: []string{`d dir opaque`, `d/new file "n"`}},
	{id: "E6", items: items(u.F("d/new", "n"), u.W(".wh.d")), want: []string{`d dir @0 opaque`, `d/new file "n"`},
		notes: "needs whiteouts"},
	{id: "E6 before", items: items(u.W(".wh.d"), u.F("d/s/new", "n")),
		want: []string{`d dir @0 opaque`, `d/s dir @0`, `d/s/new file "n"`}, notes: "whiteouts"},
	{id: "E7", items: items(u.D("d"), u.W("d/.wh..wh..opq"), u.F("d/n", "n")),
		want: []string{`d dir opaque`, `d/n file "n"`}},
	{id: "E8", items: items(u.D("d"), u.F("d/n", "n"), u.W("d/.wh..wh..opq")),
		want: []string{`d dir opaque`, `d/n file "n"`}},
	{id: "E9", items: items(u.F("d/s/n", "n"), u.W("d/.wh..wh..opq")),
		want: []string{`d dir @0 opaque`, `d/s dir @0`, `d/s/n file "n"`}, notes: "needs whiteouts implied:d"},
	{id: "E10 opaque first",
		items: items(u.D("d"), u.W("d/.wh..wh..opq"), u.W("d/.wh.a"), u.D("d/e"), u.W("d/e/.wh.b")),
		want:  []string{`d dir opaque`, `d/e dir`}},
	{id: "E10 opaque last", items: items(u.D("d"), u.W("d/.wh.a"), u.D("d/e"), u.W("d/e/.wh.b"), u.W("d/.wh..wh..opq")),
		want: []string{`d dir opaque`, `d/e dir`}},
	{id: "E11", items: items(u.F("a", "1"), u.W(".wh..wh..opq")), want: []string{`. dir @0 opaque`, `a file "1"`},
		notes: "whiteouts"},
	{id: "E11 alone", items: items(u.W(".wh..wh..opq")), want: []string{`. dir @0 opaque`}, notes: "whiteouts"},
	{id: "E12 missing", items: items(u.W("d/.wh..wh..opq")), want: []string{`d dir @0 opaque`},
		notes: "needs whiteouts implied:d"},
	{id: "E12 in a file", items: items(u.F("d", "f"), u.W("d/.wh..wh..opq"), u.W("d/.wh.x")),
		want: []string{`d file "f"`}},
	{id: "E12 through a symlink", items: items(u.S("d", "/CANARY"), u.W("d/.wh..wh..opq"), u.W("d/.wh.secret")),
		safe: true},
	{id: "E12 through a symlink, inside", items: items(u.S("d", "../t"), u.D("t"), u.W("d/.wh..wh..opq")),
		want: []string{`d symlink -> ../t`, `t dir opaque`}},
	{id: "E13 missing parent", items: items(u.W("p/q/.wh.x")),
		want:  []string{`p dir @0`, `p/q dir @0 origin`, `p/q/x whiteout`},
		notes: "needs whiteouts implied:p implied:p/q"},
	{id: "E13 below what is removed",
		items: items(u.W("p/q/.wh.x"), u.W(".wh.p"), u.D("d"), u.W("d/e/.wh..wh..opq"), u.W("d/.wh..wh..opq")),
		want:  []string{`. dir @0 origin`, `d dir opaque`, `p whiteout`}, notes: "needs whiteouts"},
	{id: "E14 non-empty", items: items(u.F(".wh.a", "data"), u.F("b", "2")),
		want: []string{`. dir @0 origin`, `a whiteout`, `b file "2"`}},
	{id: "E14 directory", items: items(u.D(".wh.a")), want: []string{`. dir @0 origin`, `a whiteout`}},
	{id: "E14 symlink", items: items(u.S(".wh.a", "/CANARY"), u.D("o"), u.S("o/.wh..wh..opq", "/CANARY")),
		want: []string{`. dir @0 origin`, `a whiteout`, `o dir opaque`}},
	{id: "E14 hard link", items: items(u.H(".wh.a", "b")), want: []string{`. dir @0 origin`, `a whiteout`}},
	{id: "E15", items: items(u.D(".wh.etc"), u.F(".wh.etc/x", "1")),
		want: []string{`. dir @0 origin`, `.wh.etc dir @0`, `.wh.etc/x file "1"`,
			`etc whiteout`}, notes: "needs whiteouts implied:.wh.etc"},
	{id: "E15 deeper", items: items(u.F("d/.wh.a/.wh.b/x", "1"), u.H("l", "d/.wh.a/.wh.b/x"), u.W("d/.wh.a/.wh.y")),
		want: []string{`d dir @0`, `d/.wh.a dir @0 origin`, `d/.wh.a/.wh.b dir @0`, `d/.wh.a/.wh.b/x file "1"`,
			`d/.wh.a/y whiteout`,
			`l file "1" = d/.wh.a/.wh.b/x`}},
	{id: "E15 through a symlink", items: items(u.S("s", ".wh.etc"), u.F("s/x", "1")),
		want: []string{`.wh.etc dir @0`, `.wh.etc/x file "1"`, `s symlink -> .wh.etc`}},
	{id: "E15 a hard link to the marker", items: items(u.F(".wh.a/x", "1"), u.H("b", ".wh.a")),
		err: "hard link to a whiteout"},
	{id: "E15 the opaque marker", items: items(u.D("d"), u.F("d/.wh..wh..opq/x", "1"), u.D("d/.wh..wh..opq/e")),
		want: []string{`d dir`}},
	{id: "E15 through a symlink to the opaque marker", items: items(u.S("s", ".wh..wh..opq"), u.F("s/x", "1")),
		err: "name of whiteouts"},
	{id: "E15 a hard link below the opaque marker", items: items(u.H("a", ".wh..wh..opq/x")),
		err: "hard link to a whiteout"},
	{id: "E16", items: items(u.D(".wh..wh.plnk"), u.F(".wh..wh.plnk/12.34", "x"), u.F(".wh..wh.aufs", ""),
		u.F("a", "1")),
		want: []string{`a file "1"`}},
	{id: "opaque in opaque",
		items: items(u.D("d"), u.D("d/e"), u.W("d/e/.wh..wh..opq"), u.W("d/.wh..wh..opq"), u.F("d/g", ""), u.D("d/g")),
		want:  []string{`d dir opaque`, `d/e dir`, `d/g dir`}},
	{id: "whiteouts of names in one directory", items: items(u.F("d/a", "1"), u.W("d/.wh.a"), u.W("d/.wh.b")),
		want: []string{`d dir @0 origin`, `d/a file "1"`, `d/b whiteout`}},
}

var linkRows = []row{
	{id: "E18", items: items(u.F("b", "1"), u.H("a", "b")), want: []string{`a file "1"`, `b file "1" = a`}, notes: ""},
	{id: "E18 three", items: items(u.F("b", "1"), u.H("a", "b"), u.H("d/c", "a")),
		want: []string{`a file "1"`, `b file "1" = a`, `d dir @0`, `d/c file "1" = a`}},
	{id: "E19", items: items(u.D("d"), u.H("d/b", "x/y/a").Mode(0o600)), want: []string{`d dir`},
		notes: "needs link:d/b=>x/y/a:600"},
	{id: "E19 through a symlink", items: items(u.S("lib", "usr/lib"), u.H("b", "lib/a")),
		want:  []string{`lib symlink -> usr/lib`},
		notes: "needs link:b=>usr/lib/a:644"},
	{id: "E19 link to a link", items: items(u.H("b", "a"), u.H("c", "b").Mode(0o600)), want: nil,
		notes: "needs link:b=>a:644 link:c=>a:600"},
	{id: "E19 replaced", items: items(u.H("b", "a"), u.F("b", "1")), want: []string{`b file "1"`}},
	{id: "E20", items: items(u.F("a", "1"), u.H("b", "a"), u.F("a", "2")), want: []string{`a file "2"`, `b file "1"`}},
	{id: "E21", items: items(u.W(".wh.a"), u.H("b", "a")), err: "which the layer removes"},
	{id: "E21 after", items: items(u.H("b", "a"), u.W(".wh.a")), want: []string{`. dir @0 origin`, `a whiteout`},
		notes: "needs whiteouts link:b=>a:644"},
	{id: "E21 parent", items: items(u.W(".wh.d"), u.H("b", "d/e/a")), err: "which the layer removes"},
	{id: "E21 opaque", items: items(u.H("b", "d/a"), u.W("d/.wh..wh..opq")), want: []string{`d dir @0 opaque`},
		notes: "needs whiteouts link:b=>d/a:644 implied:d"},
	{id: "E21 opaque before", items: items(u.D("d"), u.W("d/.wh..wh..opq"), u.H("b", "d/a")),
		err: "which the layer removes"},
	{id: "E21 replaced parent", items: items(u.F("d", ""), u.D("d"), u.H("b", "d/a")), err: "which the layer removes"},
	{id: "E21 parent is a file", items: items(u.F("d", ""), u.H("b", "d/a")), err: "which does not exist"},
	{id: "E21 own target", items: items(u.W(".wh.a"), u.F("a", "1"), u.H("b", "a")),
		want: []string{`a file "1"`, `b file "1" = a`}},
	{id: "E22", items: items(u.H("b", "a"), u.F("a", "1")), want: []string{`a file "1"`}, notes: "needs link:b=>a:644"},
	{id: "E22 as a directory", items: items(u.H("b", "a"), u.F("a/x", "1")), want: []string{`a dir @0`, `a/x file "1"`},
		notes: "needs implied:a link:b=>a:644"},
	{id: "E23 itself", items: items(u.F("a", "1"), u.H("a", "a")), err: "its own name"},
	{id: "E23 itself, missing", items: items(u.H("a", "./a")), err: "its own name"},
	{id: "E23 directory", items: items(u.D("d"), u.H("d2", "d")), err: "which is a directory"},
	{id: "E23 implied directory, which may be a symlink", items: items(u.F("d/f", ""), u.H("d2", "d")),
		want: []string{`d dir @0`, `d/f file ""`}, notes: "needs implied:d link:d2=>d:644"},
	{id: "E23 root", items: items(u.H("d2", "/")), err: "hard link to the root"},
	{id: "E23 fifo", items: items(u.P("p"), u.H("q", "p")), want: []string{`p fifo`, `q fifo = p`}},
	{id: "E23 below what it replaces", items: items(u.D("a"), u.F("a/x", "1"), u.H("a", "a/x")),
		err: "which lies in what it replaces"},
	{id: "E23 whiteout", items: items(u.H("a", ".wh.b")), err: "hard link to a whiteout"},
	{id: "E23 below itself", items: items(u.F("a", "1"), u.H("a/x", "a")), err: "which is a directory"},
	{id: "below a link", items: items(u.H("a", "b"), u.F("a/x", "1")),
		want:  []string{`a dir @0 opaque`, `a/x file "1"`},
		notes: "needs whiteouts"},
	{id: "E24", items: items(u.F("a", "1").Mode(0o600).Owner(1, 2).Xattr("user.a", "1"),
		u.H("b", "a").Mode(0o640).Owner(3, 4).At(7, 8).Xattr("user.b", "2")),
		want: []string{`a file 0640 3:4 @7.000000008 "1" user.a="1" user.b="2"`,
			`b file 0640 3:4 @7.000000008 "1" = a user.a="1" user.b="2"`}},
	{id: "E24 not writable", items: items(u.F("a", "1").Mode(0o400), u.H("b", "a").Mode(0).Xattr("user.b", "2")),
		want: []string{`a file 0000 "1" user.b="2"`, `b file 0000 "1" = a user.b="2"`}},
	{id: "E24 size", raw: linkWithSize(), want: []string{`a file @0 ""`, `b file @0 "" = a`, `c file @0 ""`}},
	{id: "E37", items: items(u.F("a", "1").Xattr("security.capability", capability), u.H("b", "a").Owner(5, 5)),
		want: []string{fmt.Sprintf(`a file 5:5 "1" security.capability=%q`, capability),
			fmt.Sprintf(`b file 5:5 "1" = a security.capability=%q`, capability)}},
	{id: "E37 replaced", items: items(u.F("a", "1").Xattr("security.capability", capability), u.F("a", "2")),
		want: []string{`a file "2"`}},
}

// linkWithSize returns a hard link whose header has a size although it has no body.
func linkWithSize() []byte {
	out := header("a", tar.TypeReg, 0, nil)
	out = append(out, header("b", tar.TypeLink, 5, func(h []byte) { copy(h[157:], "a") })...)
	out = append(out, header("c", tar.TypeReg, 0, nil)...)
	return append(out, make([]byte, 1024)...)
}

var treeRows = []row{
	{id: "E25 dir to file", items: items(u.F("a/b/c", "1"), u.F("a", "2")), want: []string{`a file "2"`}},
	{id: "E25 file to dir", items: items(u.F("a", "1"), u.D("a")), want: []string{`a dir opaque`}, notes: "whiteouts"},
	{id: "E25 dir to symlink", items: items(u.F("a/b", "1"), u.S("a", "x")), want: []string{`a symlink -> x`}},
	{id: "E25 symlink to dir", items: items(u.S("a", "x"), u.D("a"), u.F("a/b", "1")),
		want: []string{`a dir opaque`, `a/b file "1"`}},
	{id: "E25 symlink to file", items: items(u.S("a", "x"), u.F("a", "1")), want: []string{`a file "1"`}},
	{id: "E25 file to fifo", items: items(u.F("a", "1"), u.P("a")), want: []string{`a fifo`}},
	{id: "E25 back and forth", items: items(u.D("a"), u.F("a/x", "1"), u.F("a", ""), u.F("a/y/z", "2")),
		want: []string{`a dir @0 opaque`, `a/y dir @0`, `a/y/z file "2"`}, notes: "whiteouts"},
	{id: "E26 in one layer", items: items(u.S("lib", "usr/lib"), u.D("usr"), u.D("usr/lib"), u.F("lib/x", "1")),
		want: []string{`lib symlink -> usr/lib`, `usr dir`, `usr/lib dir`, `usr/lib/x file "1"`}},
	{id: "E26 implied", items: items(u.S("lib", "usr/lib"), u.F("lib/x", "1")),
		want:  []string{`lib symlink -> usr/lib`, `usr dir @0`, `usr/lib dir @0`, `usr/lib/x file "1"`},
		notes: "needs implied:usr implied:usr/lib"},
	{id: "E26 up from what is missing", items: items(u.S("s", "m/../x"), u.F("s/f", "1")),
		want: []string{`s symlink -> m/../x`, `x dir @0`, `x/f file "1"`}},
	{id: "E27", items: items(u.F("n", "1"), u.F("n/a/b", "2")),
		want: []string{`n dir @0 opaque`, `n/a dir @0`, `n/a/b file "2"`}},
	{id: "E28", items: items(u.D("d").Mode(0o700).Owner(5, 5).Xattr("user.x", "1"), u.F("d/f", "1"), u.D("d")),
		want: []string{`d dir`, `d/f file "1"`}},
	{id: "E28 implied first", items: items(u.F("d/f", "1"), u.D("d").Mode(0o700)),
		want: []string{`d dir 0700`, `d/f file "1"`}, notes: ""},
	{id: "E29", items: items(u.D("./").Mode(0o1777).Owner(3, 4).At(9, 0).Xattr("user.x", "1")),
		want: []string{`. dir 1777 3:4 @9 user.x="1"`}, notes: "empty root"},
	{id: "E29 absent", items: items(u.F("a", "")), want: []string{`a file ""`}, notes: ""},
	{id: "E30", items: items(u.F("./a", "1"), u.F("/a", "2"), u.D("b/"), u.F("b//c", "3"), u.F("b/./c", "4")),
		want: []string{`a file "2"`, `b dir`, `b/c file "4"`}},
	{id: "E31", items: items(u.F("a", "1"), u.F("b", "1"), u.F("a", "2")), want: []string{`a file "2"`, `b file "1"`}},
	{id: "E39 fifo", items: items(u.P("p").Mode(0o622).Owner(1, 1)), want: []string{`p fifo 0622 1:1`}},
	{id: "E40 long names",
		items: items(u.F(long(100), "1"), u.F(long(101), "2"), u.F(long(155), "3"), u.F(long(254)+"/f", "4"),
			u.S("s", long(250)+"/"+long(250))),
		want: []string{long(100) + ` file "1"`, long(101) + ` file "2"`, long(155) + ` file "3"`, long(254) + ` dir @0`,
			long(254) + `/f file "4"`, `s symlink -> ` + long(250) + "/" + long(250)}},
	{id: "E40 path of 4095", items: items(u.F(strings.Repeat("/a", 2048)[1:], "1"), u.F("a", "2")),
		want: []string{`a file "2"`}},
	{id: "E40 GNU", items: asGNU(u.F(long(200), "1"), u.S("s", long(200)), u.F("a", "").Mode(0o600)),
		want: []string{`a file 0600 ""`, long(200) + ` file "1"`, `s symlink -> ` + long(200)}},
	{id: "E41", items: items(u.F("\u00e9", "nfc"), u.F("e\u0301", "nfd"), u.F("\xe9", "latin1"), u.F("A", "1"),
		u.F("a", "2")),
		want: []string{`A file "1"`, `a file "2"`, "e\u0301" + ` file "nfd"`, "\u00e9" + ` file "nfc"`,
			`"\xe9" file "latin1"`}},
	{id: "E42 GNU 1.0", raw: sparse10(), want: []string{`f file @0 "ab` + strings.Repeat(`\x00`, 8) + `yz"`}},
	{id: "E43 zeros", raw: make([]byte, 1024), want: nil, notes: "empty"},
	{id: "E43 nothing", raw: []byte{}, want: nil, notes: "empty"},
	{id: "E44 padding", raw: append(absurdHeader(nil), make([]byte, 10<<10)...), want: []string{`f file @0 ""`}},
	{id: "E44 junk", raw: append(absurdHeader(nil), strings.Repeat("junk", 1000)...), want: []string{`f file @0 ""`}},
	{id: "E44 second tar", raw: append(absurdHeader(nil), absurdHeader(func(h []byte) { h[0] = 'g' })...),
		want: []string{`f file @0 ""`}},
}

func long(n int) string { return strings.Repeat("n", n) }

func asGNU(in ...u.Item) []u.Item {
	for i := range in {
		in[i].Header.Format = tar.FormatGNU
	}
	return in
}

// sparse10 returns a sparse file in PAX format 1.0: "ab", a hole of 8 bytes, "yz".
func sparse10() []byte {
	text := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=12\n21 GNU.sparse.name=f\n"
	out := header("x", tar.TypeXHeader, len(text), nil)
	out = append(out, text...)
	out = append(out, make([]byte, 512-len(text))...)
	out = append(out, header("GNUSparseFile.0/f", tar.TypeReg, 516, nil)...)
	block := make([]byte, 1024)
	copy(block, "2\n0\n2\n10\n2\n")
	copy(block[512:], "abyz")
	return append(append(out, block...), make([]byte, 1024)...)
}

var attrRows = []row{
	{id: "E32 times",
		items: items(u.F("a", "").At(1, 123456789), u.S("s", "t").At(2, 5), u.D("d").At(3, 6), u.F("d/f", "").At(4, 0),
			u.F("old", "").At(-86400, 0), u.F("late", "").At(4_500_000_000, 0)),
		want: []string{`a file @1.123456789 ""`, `d dir @3.000000006`, `d/f file @4 ""`, `late file @4500000000 ""`,
			`old file @-86400 ""`,
			`s symlink @2.000000005 -> t`}},
	{id: "E32 clamped", items: items(u.F("a", "").At(1<<40, 0), u.D("d").At(-1<<40, 0)), safe: true},
	{id: "E33", items: items(u.D("d").At(3, 0), u.F("d/a", ""), u.F("d/a", "2"), u.W("d/.wh.b")),
		want: []string{`d dir @3 origin`, `d/a file "2"`, `d/b whiteout`}},
	{id: "E34", items: items(u.D("z").Mode(0), u.F("z/f", "1").Mode(0), u.D("r").Mode(0o555), u.D("r/s").Mode(0o111),
		u.F("r/s/f", "2").Mode(0o200),
		u.W("r/.wh.w")),
		want: []string{`r dir 0555 origin`, `r/s dir 0111`, `r/s/f file 0200 "2"`, `r/w whiteout`, `z dir 0000`,
			`z/f file 0000 "1"`}},
	{id: "E34 root", items: items(u.D(".").Mode(0).At(0, 0), u.F("f", "1")),
		want: []string{`. dir 0000 @0`, `f file "1"`}},
	{id: "E35", items: items(u.F("su", "").Mode(0o4755), u.F("sg", "").Mode(0o2755), u.D("t").Mode(0o1777),
		u.D("g").Mode(0o2775).Owner(1, 50),
		u.D("g/d"), u.F("g/f", "").Owner(2, 3), u.F("all", "").Mode(0o7777), u.F("w", "").Mode(0o666)),
		want: []string{`all file 7777 ""`, `g dir 2775 1:50`, `g/d dir`, `g/f file 2:3 ""`, `sg file 2755 ""`,
			`su file 4755 ""`, `t dir 1777`,
			`w file 0666 ""`},
		user: []string{`all file 3777 ""`, `g dir 2775`, `g/d dir`, `g/f file ""`, `sg file 2755 ""`, `su file 0755 ""`,
			`t dir 1777`,
			`w file 0666 ""`}},
	{id: "E36", items: items(u.F("a", "").Owner(65534, 65534), u.F("b", "").Owner(math.MaxUint32-1, math.MaxUint32-1),
		u.S("s", "t").Owner(7, 8)),
		want:     []string{`a file 65534:65534 ""`, `b file 4294967294:4294967294 ""`, `s symlink 7:8 -> t`},
		confined: "uid 4294967294 has no place in this user namespace, which maps 0:65534:1,1:100000:65536"},
	{id: "E36 gid", items: items(u.D("d").Owner(65536, 65537)), want: []string{`d dir 65536:65537`},
		confined: "gid 65537 has no place"},
	{id: "E36 of a device", items: items(u.D("d").Owner(65536, 0), u.C("d/c", 1, 3).Owner(70000, 0)),
		want: []string{`d dir 65536:0`, `d/c char 70000:0 1:3`}, user: []string{`d dir origin`, `d/c whiteout`}},
	{id: "E36 -1 without its sign", items: items(u.F("a", "").Owner(4294967295, 5), u.D("d").Owner(5, 4294967295)),
		want: []string{`a file 0:5 ""`, `d dir 5:0`}},
	{id: "E36 uid 2^32", items: items(u.F("a", "").Owner(4294967296, 0)), err: "owner 4294967296:0 is out of range"},
	{id: "E38", items: items(u.F("f", "").Xattr("user.nul", "a\x00b").Xattr("user.eq", "a=b"),
		u.D("d").Xattr("user.d", "1").Mode(0o555)),
		want: []string{`d dir 0555 user.d="1"`, `f file "" user.eq="a=b" user.nul="a\x00b"`}},
	{id: "E38 empty value", raw: paxRecord("24 SCHILY.xattr.user.x=\n"), want: []string{`f file @0 "" user.x=""`}},
	{id: "E38 on a file that nobody can write", items: items(u.F("f", "1").Mode(0o400).Xattr("user.x", "1")),
		want: []string{`f file 0400 "1" user.x="1"`}},
	{id: "E38 ACL",
		items: items(u.D("d").Mode(0o770).Xattr("system.posix_acl_default", acl).Xattr("system.posix_acl_access", acl),
			u.F("d/f", "").Mode(0o660).Xattr("system.posix_acl_access", acl), u.F("d/g", ""), u.D("d/e")),
		want: []string{fmt.Sprintf(`d dir 0770 system.posix_acl_access=%q system.posix_acl_default=%q`, acl, acl),
			`d/e dir`,
			fmt.Sprintf(`d/f file 0660 "" system.posix_acl_access=%q`,
				strings.NewReplacer("\x10\x00\x07", "\x10\x00\x06", "\x01\x00\x07", "\x01\x00\x06").Replace(acl)),
			`d/g file ""`}},
}

// acl is user::rwx,user:1000:rwx,group::rwx,mask::rwx,other::---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
	"\x04\x00\x07\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
