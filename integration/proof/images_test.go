package proof

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/integration"
)

// image is one that the registry has, with the tree that it has to have.
type image struct {
	name  string // repository:tag
	tree  []integration.Node
	chain string // the key of its topmost snapshot
}

// newImages puts n images into the registry. They share their lower layer, and each has one of its own. The first image
// can run.
func newImages(t *testing.T, r *integration.Registry, n, size int) []*image {
	t.Helper()
	hello, err := integration.HelloProgram()
	if err != nil {
		t.Fatal(err)
	}
	shared := []integration.Entry{
		folder("etc"), folder("usr"), folder("usr/bin"), folder("proc"), folder("sys"), folder("dev"), folder("run"),
		folder("tmp"), regular("etc/shared", random(0, size)), regular("etc/gone", "gone"),
	}
	var images []*image
	for i := range n {
		own := []integration.Entry{regular(fmt.Sprintf("etc/own%d", i), random(i+1, size)), regular("etc/.wh.gone", "")}
		if i == 0 {
			own = append(own, regular("usr/bin/hello", string(hello)))
		}
		layers := [][]integration.Entry{shared, own}
		built, err := integration.BuildImage(layers, ocispec.ImageConfig{Cmd: []string{"/usr/bin/hello"}})
		if err != nil {
			t.Fatal(err)
		}
		tree, err := integration.ExpectedTree(layers)
		if err != nil {
			t.Fatal(err)
		}
		img := &image{name: fmt.Sprintf("proof/i%d:1", i), tree: tree, chain: chainOf(built.DiffIDs)}
		r.PushBuilt(built, img.name)
		images = append(images, img)
	}
	return images
}

func chainOf(diffIDs []digest.Digest) string { return identity.ChainID(diffIDs).String() }

func random(seed, size int) string {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return string(b)
}

// made is the time of every entry.
var made = time.Unix(1700000000, 0)

func folder(name string) integration.Entry {
	return integration.Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: made}}
}

func regular(name, data string) integration.Entry {
	return integration.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, ModTime: made},
		Data: []byte(data)}
}
