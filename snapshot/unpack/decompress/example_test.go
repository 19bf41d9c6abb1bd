package decompress_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"

	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
)

// The bytes of a blob decide how it is decoded, even if its media type names another compression.
func ExampleNewReader() {
	var blob bytes.Buffer
	z := gzip.NewWriter(&blob)
	if _, err := z.Write([]byte("the tar stream of a layer")); err != nil {
		log.Fatal(err)
	}
	if err := z.Close(); err != nil {
		log.Fatal(err)
	}
	r, err := decompress.NewReader("application/vnd.oci.image.layer.v1.tar", &blob)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	tar, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", tar)
	// Output: the tar stream of a layer
}
