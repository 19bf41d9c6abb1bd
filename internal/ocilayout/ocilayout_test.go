package ocilayout

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
)

func image(name string) Image {
	return Image{name, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1,
	}}
}

func of(images ...Image) func() ([]Image, error) {
	return func() ([]Image, error) { return images, nil }
}

// names returns the references of Tank's entries in index.json.
func names(t *testing.T, l *Layout) (names []string) {
	t.Helper()
	images, err := l.Images()
	if err != nil {
		t.Error(err)
	}
	for _, d := range images {
		names = append(names, d.Annotations[ocispec.AnnotationRefName])
	}
	return names
}

// addForeign adds an entry of another program to index.json.
func addForeign(t *testing.T, l *Layout, d digest.Digest) {
	t.Helper()
	file, _, err := l.read()
	if err != nil {
		t.Fatal(err)
	}
	entry, _ := json.Marshal(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 1})
	file.Manifests = append(file.Manifests, entry)
	b, _ := json.Marshal(file)
	if err := os.WriteFile(l.indexPath(), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWrite: index.json has the images of the records and the entries that another program added. An
// unchanged index.json is not written again.
func TestWrite(t *testing.T) {
	root := t.TempDir()
	fs := fsystest.New(t, root)
	l := New(root, fs)
	if !l.Empty() {
		t.Error("a missing file is not empty")
	}
	if err := l.Write(of(image("a"), image("b"))); err != nil {
		t.Fatal(err)
	}
	if got := names(t, l); !slices.Equal(got, []string{"a", "b"}) || l.Empty() {
		t.Errorf("entries %q", got)
	}
	// Otherwise a power cut could leave an empty file in place of the entries of other programs.
	h := fs.History()
	if got := h[len(h)-2:]; !slices.Equal(got, []string{"sync index.json.new", "rename index.json.new index.json"}) {
		t.Errorf("history: %q", h)
	}
	if foreign, err := l.ForeignBlobs(); err != nil || len(foreign) > 0 {
		t.Errorf("blobs of another program that has none: %v, %v", foreign, err)
	}
	other := digest.FromString("other")
	addForeign(t, l, other)
	before := len(fs.History())
	if foreign, err := l.ForeignBlobs(); err != nil || !foreign[other] {
		t.Errorf("blobs of another program: %v, %v", foreign, err)
	}
	for range 2 {
		if err := l.Write(of(image("b"))); err != nil {
			t.Fatal(err)
		}
	}
	if foreign, err := l.ForeignBlobs(); err != nil || !foreign[other] {
		t.Errorf("blobs of another program: %v, %v", foreign, err)
	}
	if got := names(t, l); !slices.Equal(got, []string{"b"}) {
		t.Errorf("entries %q", got)
	}
	renames := 0
	for _, line := range fs.History()[before:] {
		if line == "rename index.json.new index.json" {
			renames++
		}
	}
	if renames != 1 {
		t.Errorf("index.json was replaced %d times: %q", renames, fs.History()[before:])
	}
}

// TestCrash simulates a crash in every operation of a Write. Afterwards index.json has its former or
// its new content, and the next Write completes it.
func TestCrash(t *testing.T) {
	for n := 1; ; n++ {
		root := t.TempDir()
		if err := New(root, nil).Write(of(image("a"))); err != nil {
			t.Fatal(err)
		}
		addForeign(t, New(root, nil), digest.FromString("other"))
		fs := fsystest.New(t, root, fmt.Sprintf("any #%d: crash during", n))
		err := New(root, fs).Write(of(image("b")))
		l := New(root, nil)
		if got := names(t, l); !slices.Equal(got, []string{"a"}) && (err == nil) != slices.Equal(got, []string{"b"}) {
			t.Errorf("operation %d: entries %q after %v", n, got, err)
		}
		if err := l.Write(of(image("b"))); err != nil {
			t.Error(err)
		}
		foreign, err := l.ForeignBlobs()
		if got := names(t, l); !slices.Equal(got, []string{"b"}) || err != nil || len(foreign) != 1 {
			t.Errorf("operation %d: entries %q, blobs of another program %v, %v", n, got, foreign, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "index.json.new")); err == nil {
			t.Errorf("operation %d: a temporary file is left", n)
		}
		if fs.Hits() == 0 {
			break
		}
	}
}

// TestUnfinished: a file that a crash left is removed although the file that it was for is right.
func TestUnfinished(t *testing.T) {
	root := t.TempDir()
	if err := New(root, nil).Write(of(image("a"))); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(root, "index.json.new")
	if err := os.WriteFile(left, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(root, nil).Write(of(image("a"))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}
