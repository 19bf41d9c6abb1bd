package integration

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// epoch is the default time of entries: 2024-01-02 03:04:05 UTC.
const epoch = 1704164645

// dir, file, symlink, hardlink, fifo and whiteout make entries; the functions after them change one.
func dir(name string, mode int64, change ...func(*Entry)) Entry {
	return entry(tar.TypeDir, name+"/", mode, nil, change)
}

func file(name string, mode int64, data string, change ...func(*Entry)) Entry {
	return entry(tar.TypeReg, name, mode, []byte(data), change)
}

func symlink(name, target string, change ...func(*Entry)) Entry {
	e := entry(tar.TypeSymlink, name, 0o777, nil, change)
	e.Linkname = target
	return e
}

func hardlink(name, target string, mode int64, change ...func(*Entry)) Entry {
	e := entry(tar.TypeLink, name, mode, nil, change)
	e.Linkname = target
	return e
}

func fifo(name string, mode int64, change ...func(*Entry)) Entry {
	return entry(tar.TypeFifo, name, mode, nil, change)
}

func entry(kind byte, name string, mode int64, data []byte, change []func(*Entry)) Entry {
	e := Entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: mode, ModTime: time.Unix(epoch, 0)}, Data: data}
	for _, c := range change {
		c(&e)
	}
	return e
}

func owner(uid, gid int) func(*Entry) { return func(e *Entry) { e.Uid, e.Gid = uid, gid } }

func at(seconds int64) func(*Entry) { return func(e *Entry) { e.ModTime = time.Unix(seconds, 0) } }

func xattr(name, value string) func(*Entry) {
	return func(e *Entry) {
		if e.PAXRecords == nil {
			e.PAXRecords = map[string]string{}
		}
		e.PAXRecords["SCHILY.xattr."+name] = value
	}
}

// netRaw is the file capability cap_net_raw+ep, revision 2.
var netRaw = func() string {
	b, err := hex.DecodeString("0100000200200000000000000000000000000000")
	if err != nil {
		panic(err)
	}
	return string(b)
}()

// helloArgs is the image's config: hello without arguments.
var helloConfig = ocispec.ImageConfig{Cmd: []string{"/usr/bin/hello"}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/"}

// OwnLayers are the layers of the tests' own image. containerd's overlayfs agrees with the model about
// them, except for the times of directories that a layer only implies.
func OwnLayers() ([][]Entry, error) {
	hello, err := testProgram()
	if err != nil {
		return nil, err
	}
	repeated := []Entry{
		dir("repeated", 0o750, owner(7, 8)),
		file("repeated/one", 0o600, "one\n", owner(7, 8), at(1500000000)),
	}
	return [][]Entry{ownBase(hello), repeated, ownChanges(), nil, repeated, ownTop()}, nil
}

// ownBase has no entry for the root directory, as most layers.
func ownBase(hello []byte) []Entry {
	layer := []Entry{
		dir("usr", 0o755),
		dir("usr/lib", 0o751, owner(3, 4), at(1600000000)),
		dir("usr/bin", 0o755),
		file("usr/bin/hello", 0o755, string(hello)),
		symlink("bin", "usr/bin"),
		symlink("lib", "usr/lib"),
		dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o755), dir("etc", 0o755), dir("tmp", 0o1777),
		file("etc/passwd", 0o644, "root:x:0:0:root:/:/usr/bin/hello\n"),
		// directories that upper layers only imply keep these attributes
		dir("a", 0o700, owner(11, 12), at(1400000001)),
		dir("a/b", 0o2771, owner(13, 14), at(1400000002), xattr("user.kind", "special")),
		file("a/b/c", 0o644, "gone\n"), file("a/b/d", 0o644, "stays\n"),
		dir("implied", 0o711, owner(21, 22), at(1400000003), xattr("user.kind", "implied")),
		dir("implied/deep", 0o1770, owner(23, 24), at(1400000004)),
		// linked from above
		file("usr/target", 0o640, "linked from above\n", owner(31, 32), at(1400000005), xattr("user.note", "linked")),
		file("usr/first", 0o644, "two names\n"), hardlink("usr/second", "usr/first", 0o644),
		// replaced and removed from above
		dir("opaque", 0o755), file("opaque/old", 0o644, "old\n"), dir("opaque/sub", 0o755),
		file("opaque/sub/old", 0o644, "old\n"),
		dir("hidden", 0o710, owner(41, 42), at(1400000006)), file("hidden/old", 0o644, "old\n"),
		dir("removed", 0o755), file("removed/x", 0o644, "x\n"),
		dir("becomes-file", 0o755), file("becomes-file/x", 0o644, "x\n"),
		file("becomes-dir", 0o644, "a file\n"),
		file("becomes-link", 0o644, "a file\n"),
	}
	for i := range 200 { // enough entries that an unpack takes a while
		layer = append(layer, file(fmt.Sprintf("usr/lib/data-%03d", i), 0o644, noise(uint64(i), 12000)))
	}
	return layer
}

// ownChanges is the layer whose parts depend on what lies below it.
func ownChanges() []Entry {
	return []Entry{
		file("lib/x", 0o644, "through the symlink\n", at(1650000000)), // no entry for lib, which is a symlink below
		hardlink("a/b/linked", "usr/target", 0o640, owner(31, 32), at(1400000005), xattr("user.note", "linked")),
		file("a/b/.wh.c", 0, ""), // no entries for a and a/b
		file("implied/deep/new", 0o644, "new\n"),
		dir("opaque", 0o750, owner(51, 52)), file("opaque/new", 0o644, "new\n"), file("opaque/.wh..wh..opq", 0, ""),
		file("hidden/.wh..wh..opq", 0, ""), file("hidden/new", 0o644, "new\n"), // opaque, and only implied
		file(".wh.removed", 0, ""),
		file("becomes-file", 0o644, "now a file\n"),
		dir("becomes-dir", 0o755), file("becomes-dir/x", 0o644, "x\n"),
		symlink("becomes-link", "usr/bin/hello", owner(5, 6), at(1300000000)),
		file("usr/bin/suid", 0o4755, "suid\n"), file("usr/bin/sgid", 0o2755, "sgid\n", owner(0, 9)),
		file("usr/bin/raw", 0o755, "capable\n", xattr("security.capability", netRaw)),
		fifo("tmp/fifo", 0o620, owner(61, 62)),
		file("new/made/here", 0o644, "implied parents that nobody has\n"),
	}
}

func ownTop() []Entry {
	return []Entry{
		dir("top", 0o755, at(1700000000)),
		file("top/again", 0o644, noise(1000, 40000)),
		file("usr/lib/.wh.data-000", 0, ""),
		file("usr/lib/data-001", 0o600, "replaced\n", owner(1, 1)),
		file("implied/deep/.wh.new", 0, ""), // a whiteout of a file that the layer below put there
	}
}

// CornerLayers lie above OwnLayers, and have features that containerd's overlayfs refuses or treats differently.
func CornerLayers() ([][]Entry, error) {
	layers, err := OwnLayers()
	return append(layers, []Entry{
		// a whiteout of nothing: no directory is left
		file("absent/x/.wh.y", 0, ""),
		file("etc/passwd/sub/file", 0o644, "an implied directory over a file\n"), // the file gives way
		file("lib/y/.wh.z", 0, ""),
		hardlink("usr/third", "usr/first", 0o600, at(1234567890)), // its header changes all names
	}), err
}

// noise is text that hardly compresses, the same for the same seed.
func noise(seed uint64, size int) string {
	r := rand.New(rand.NewPCG(seed, 42))
	var b bytes.Buffer
	for b.Len() < size {
		fmt.Fprintf(&b, "%016x", r.Uint64())
	}
	return b.String()[:size]
}
