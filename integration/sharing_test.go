package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// form is how an image's layers are packed.
type form struct {
	name, layer string // layer is the media type
	docker      bool   // the manifest and the config are Docker's
	pack        func(t testing.TB, stream []byte) []byte
}

func gzipAt(level int) func(testing.TB, []byte) []byte {
	return func(t testing.TB, stream []byte) []byte {
		t.Helper()
		var z bytes.Buffer
		w, err := gzip.NewWriterLevel(&z, level)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(stream); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return z.Bytes()
	}
}

func zstdPacked(t testing.TB, stream []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(stream, nil)
}

func plain(_ testing.TB, stream []byte) []byte { return stream }

var forms = []form{
	{"oci gzip", ocispec.MediaTypeImageLayerGzip, false, gzipAt(gzip.DefaultCompression)},
	{"oci gzip -1", ocispec.MediaTypeImageLayerGzip, false, gzipAt(gzip.BestSpeed)},
	{"oci gzip -9", ocispec.MediaTypeImageLayerGzip, false, gzipAt(gzip.BestCompression)},
	{"oci gzip, stored", ocispec.MediaTypeImageLayerGzip, false, gzipAt(gzip.NoCompression)},
	{"oci zstd", ocispec.MediaTypeImageLayerZstd, false, zstdPacked},
	{"oci tar", ocispec.MediaTypeImageLayer, false, plain},
	{"docker gzip", images.MediaTypeDockerSchema2LayerGzip, true, gzipAt(gzip.DefaultCompression)},
	{"docker zstd", images.MediaTypeDockerSchema2LayerZstd, true, zstdPacked},
	{"docker tar", images.MediaTypeDockerSchema2Layer, true, plain},
}

// build packs layers in this form.
func (f form) build(t testing.TB, layers [][]Entry) BuiltImage {
	t.Helper()
	b := BuiltImage{Blobs: map[digest.Digest][]byte{}}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, entries := range layers {
		stream, err := tarStream(entries)
		if err != nil {
			t.Fatal(err)
		}
		b.DiffIDs = append(b.DiffIDs, digest.FromBytes(stream))
		b.Layers = append(b.Layers, b.add(f.layer, f.pack(t, stream)))
	}
	config, manifest := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageManifest
	if f.docker {
		config, manifest = images.MediaTypeDockerSchema2Config, images.MediaTypeDockerSchema2Manifest
	}
	b.Config = b.add(config, marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: helloConfig,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: b.DiffIDs},
	}))
	b.Manifest = b.add(manifest, marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifest, Config: b.Config, Layers: b.Layers,
	}))
	return b
}

// bothWays pulls an image through one door and then through the other, and compares the trees with want.
func bothWays(t *testing.T, what string, want []Node, k *TankRoot, c *Containerd, r *Registry, name string,
	cliFirst bool) {
	t.Helper()
	cli := func() { CheckTree(t, what+", by the CLI", want, k.Pull(r.Ref(name))) }
	node := func() {
		ref := TestRegistry + "/" + name
		c.Pull(ref)
		dir := c.Mount(ref)
		CheckTree(t, what+", by containerd", want, dir)
		c.Unmount(dir)
	}
	if cliFirst {
		cli()
		node()
	} else {
		node()
		cli()
	}
}

// TestCompressions: the same layers in any compression and under any media types are unpacked once,
// through both doors, and share one directory on disk.
func TestCompressions(t *testing.T) {
	t.Parallel()
	e := New(t)
	k, c, r := e.NewNode()
	layers := [][]Entry{
		{dir("a", 0o750, owner(1, 2)), file("a/x", 0o640, noise(1, 5000)), file("a/y", 0o644, "y\n")},
		{file("a/.wh.y", 0, ""), symlink("l", "a/x"), file("b/z", 0o600, noise(2, 7000))},
	}
	tree, err := ExpectedTree(layers)
	if err != nil {
		t.Fatal(err)
	}
	var dirs map[string]uint64
	seen := map[digest.Digest]bool{}
	for i, f := range forms {
		img := f.build(t, layers)
		name := fmt.Sprintf("test/form:%d", i)
		r.PushBuilt(img, name)
		for _, l := range img.Layers {
			if seen[l.Digest] && !slices.Contains([]string{"docker gzip", "docker zstd", "docker tar"}, f.name) {
				t.Fatalf("%s: the same blob as before shows nothing", f.name)
			}
			seen[l.Digest] = true
		}
		appeared := k.watchStaging(t)
		bothWays(t, f.name, tree, k, c, r, name, i%2 == 0)
		unpacked := unpackedAmong(appeared(), img.Image)
		if dirs == nil {
			dirs = k.LayerInodes(t)
			if len(unpacked) == 0 {
				t.Fatal("no unpack was seen, so this shows nothing")
			}
			continue
		}
		if len(unpacked) > 0 {
			t.Errorf("%s: unpacked again: %v", f.name, unpacked)
		}
		k.kept(t, f.name, nil, dirs)
		if now := k.LayerInodes(t); len(now) != len(dirs) {
			t.Errorf("%s: %d paths below layers/ instead of %d", f.name, len(now), len(dirs))
		}
	}
}

// TestOrders: layers of which the order decides give the right tree in each order, and one layer in two
// places is one directory.
func TestOrders(t *testing.T) {
	t.Parallel()
	e := New(t)
	k, c, r := e.NewNode()
	x := []Entry{dir("d", 0o700), file("d/x", 0o644, "x\n"), file("both", 0o644, "of x\n"), file(".wh.y", 0, ""),
		file("e/.wh..wh..opq", 0, "")}
	y := []Entry{dir("d", 0o755), file("y", 0o644, "y\n"), file("both", 0o600, "of y\n"), file("d/.wh.x", 0, ""),
		file("e/y", 0o644, "y\n")}
	// d and e are implied
	z := []Entry{file("d/z", 0o644, "z\n"), file("e/z", 0o644, "z\n"), hardlink("link", "both", 0o640)}
	var made int
	for i, row := range []struct {
		name   string
		layers [][]Entry
	}{
		{"x y z", [][]Entry{x, y, z}},
		{"y x z", [][]Entry{y, x, z}},
		{"x z y", [][]Entry{x, z, y}},
		{"y z x", [][]Entry{y, z, x}},
		{"x y x", [][]Entry{x, y, x}},
		{"y x y z x", [][]Entry{y, x, y, z, x}},
	} {
		tree, err := ExpectedTree(row.layers)
		if err != nil {
			t.Fatal(err)
		}
		img := forms[0].build(t, row.layers)
		name := fmt.Sprintf("test/order:%d", i)
		r.PushBuilt(img, name)
		appeared := k.watchStaging(t)
		bothWays(t, row.name, tree, k, c, r, name, i%2 == 1)
		unpacked := unpackedAmong(appeared(), img.Image)
		if made += len(unpacked); i > 0 && len(unpacked) > 0 {
			t.Errorf("%s: unpacked again: %v", row.name, unpacked)
		}
	}
	if made == 0 {
		t.Error("no unpack was seen, so this shows nothing")
	}
	for _, diff := range forms[0].build(t, [][]Entry{x, y, z}).DiffIDs {
		if n := k.layerRecords(t, diff); n != 1 {
			t.Errorf("%d layers have the diff ID %s", n, diff)
		}
	}
}

// TestBuiltFromAnother: of an image that was built from another only its own layers are fetched and
// unpacked, through both doors, and each goes without the other.
func TestBuiltFromAnother(t *testing.T) {
	for _, cliFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("cliFirst=%v", cliFirst), func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k, c, r := e.NewNode()
			base, baseTree := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
			built, builtTree := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")},
				[]Entry{file("etc/two", 0o644, "two\n")})
			r.PushBuilt(base, "test/base:1")
			r.PushBuilt(built, "test/built:1")
			bothWays(t, "base", baseTree, k, c, r, "test/base:1", cliFirst)
			blobs, layers := k.blobInodes(t), k.LayerInodes(t)
			appeared := k.watchStaging(t)
			r.ResetLog()
			bothWays(t, "built", builtTree, k, c, r, "test/built:1", !cliFirst)
			checkFetched(t, r, built.Config.Digest, built.Layers[2].Digest)
			if again := unpackedAmong(appeared(), base.Image); len(again) > 0 {
				t.Errorf("the base was unpacked again: %v", again)
			}
			k.kept(t, "built", blobs, layers)

			baseRef, builtRef := TestRegistry+"/test/base:1", TestRegistry+"/test/built:1"
			k.MustRun("rm", r.Ref("test/base:1"))
			c.RemoveImage(baseRef)
			k.MustRun("gc")
			c.checkHello(t, "without the base", builtRef)
			k.kept(t, "without the base", nil, layers)
			c.Pull(baseRef)
			c.RemoveImage(builtRef)
			k.MustRun("rm", r.Ref("test/built:1"))
			k.MustRun("gc")
			c.checkHello(t, "the base alone", baseRef)
			k.kept(t, "the base alone", nil, layers)
			c.RemoveImage(baseRef)
			k.MustRun("gc")
			checkEmpty(t, k)
		})
	}
}

// layerRecords counts the layers in the root whose content is that of the diff ID, by the seal's own
// listing being the same file twice.
func (k *TankRoot) layerRecords(t testing.TB, diff digest.Digest) int {
	t.Helper()
	seals, err := filepath.Glob(filepath.Join(k.Root, "layers", "[^.]*", "seal"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range seals {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(diff.String())) {
			n++
		}
	}
	return n
}
