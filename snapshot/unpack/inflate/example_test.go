package inflate_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

func Example() {
	var blob bytes.Buffer
	w := gzip.NewWriter(&blob)
	fmt.Fprintln(w, "the tar stream of a layer")
	w.Close()

	z := inflate.New(&blob, nil)
	defer z.Close()
	if _, err := io.Copy(os.Stdout, z); err != nil {
		log.Fatal(err)
	}
	// Output: the tar stream of a layer
}
