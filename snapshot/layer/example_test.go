package layer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// oneBlob is a blob store with one blob, which it returns for every digest.
type oneBlob []byte

func (b oneBlob) Open(context.Context, digest.Digest) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (b oneBlob) Size(digest.Digest) (int64, bool) { return int64(len(b)), true }

// A layer is identified by its diff ID. A second holder gets the directory of the first unpack.
func Example() {
	ctx := context.Background()
	root, err := os.MkdirTemp("", "tank")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	tar := oneBlob(make([]byte, 1024)) // an empty archive
	s, err := snapshot.Open(root, db, tar, &snapshot.Options{Unpack: unpack.Options{Unprivileged: os.Geteuid() != 0}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	d := digest.FromBytes(tar)
	pair := layer.Pair{Blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: 1024},
		DiffID: d}
	first, err := s.Layers().Unpack(ctx, "example", pair)
	fmt.Println("empty:", first.Empty, err)
	again, err := s.Layers().Unpack(ctx, "another holder", pair)
	fmt.Println("unpacked once:", first.Dir == again.Dir, err)
	// Output:
	// empty: true <nil>
	// unpacked once: true <nil>
}
