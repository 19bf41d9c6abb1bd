package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fixture is an image that tests use: its OCI layout, its descriptors, the tree that it has to unpack to, and the
// command of its containers.
type Fixture struct {
	Name    string // repository:tag in the tests' registry
	Layout  string
	Ref     string // in the layout
	Tree    []Node
	Command []string // a container's command; nil: the image's own
	Image   Image
}

// helloText is the output of a container of either image of eachImage.
const helloText = "hello from tank\n"

// eachImage runs test on the tests' own image and on the shared debian-python, one after the other.
func eachImage(t *testing.T, test func(t *testing.T, f Fixture)) {
	t.Run("own", func(t *testing.T) { test(t, OwnFixture(t)) })
	t.Run("debian-python", func(t *testing.T) { test(t, DebianFixture(t)) })
}

// DebianFixture is debian-python:12 of the shared images.
func DebianFixture(t testing.TB) Fixture {
	t.Helper()
	return sharedFixture(t, "debian-python:12", "debian-python-12.tree.jsonl")
}

// sharedFixture is a shared image with the tree of a listing beside it.
func sharedFixture(t testing.TB, ref, listing string) Fixture {
	t.Helper()
	shared := sharedImages(t)
	layout, err := filepath.Abs(filepath.Join(shared, "oci"))
	if err != nil {
		t.Fatal(err)
	}
	f := Fixture{Name: "library/" + ref, Layout: layout, Ref: ref}
	if f.Tree, err = ReadListing(filepath.Join(shared, listing)); err != nil {
		t.Fatal(err)
	}
	if f.Image, err = ReadImage(f.Layout, f.Ref); err != nil {
		t.Fatal(err)
	}
	return f
}

// OwnFixture is the tests' own image.
func OwnFixture(t testing.TB) Fixture {
	t.Helper()
	layers, err := OwnLayers()
	return builtFixture(t, "own:1", layers, err)
}

// CornerFixture is the tests' own image with one more layer, of corner cases.
func CornerFixture(t testing.TB) Fixture {
	t.Helper()
	layers, err := CornerLayers()
	return builtFixture(t, "own:corner", layers, err)
}

func builtFixture(t testing.TB, ref string, layers [][]Entry, err error) Fixture {
	t.Helper()
	f := Fixture{Name: "test/" + ref, Ref: ref}
	if err == nil {
		f.Layout, err = ownLayout()
	}
	if err == nil {
		f.Tree, err = ExpectedTree(layers)
	}
	if err == nil {
		f.Image, err = ReadImage(f.Layout, ref)
	}
	if err != nil {
		t.Fatalf("own image: %v", err)
	}
	return f
}

// PauseRef names the sandbox image of pods in containerd's configuration.
const PauseRef = TestRegistry + "/test/pause:1"

// PushPause puts the pause image into the registry.
func (r *Registry) PushPause() {
	r.t.Helper()
	layout, err := ownLayout()
	if err != nil {
		r.t.Fatal(err)
	}
	r.Push(layout, "pause:1", "test/pause:1")
}

// ownLayout writes the tests' own images into a layout in .bin, once per process.
var ownLayout = sync.OnceValues(func() (string, error) {
	layout, err := filepath.Abs(filepath.Join(moduleDir(), ".bin", fmt.Sprintf("own-images-%d", os.Getpid())))
	if err != nil {
		return "", err
	}
	return layout, writeOwnImages(layout)
})

// removeOwnLayout removes what ownLayout wrote. TestMain calls it after all tests.
func removeOwnLayout() {
	_ = os.RemoveAll(filepath.Join(moduleDir(), ".bin", fmt.Sprintf("own-images-%d", os.Getpid())))
}

// writeOwnImages writes the tests' own images into an OCI layout: own:1, own:corner and pause:1.
func writeOwnImages(layout string) error {
	own, err := OwnLayers()
	if err != nil {
		return err
	}
	corner, err := CornerLayers()
	if err != nil {
		return err
	}
	hello, err := testProgram()
	if err != nil {
		return err
	}
	pause := [][]Entry{{dir("proc", 0o555), dir("sys", 0o555), dir("dev", 0o755), file("pause", 0o755, string(hello))}}
	images := map[string]BuiltImage{}
	for ref, b := range map[string]struct {
		layers [][]Entry
		config ocispec.ImageConfig
	}{
		"own:1":      {own, helloConfig},
		"own:corner": {corner, helloConfig},
		"pause:1":    {pause, ocispec.ImageConfig{Entrypoint: []string{"/pause", "pause"}}},
	} {
		if images[ref], err = BuildImage(b.layers, b.config); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return WriteLayout(layout, images)
}
