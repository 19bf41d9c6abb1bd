package stream_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing/iotest"

	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// Blame distinguishes a stream that is too short from a reader that failed.
func ExampleSource_Blame() {
	for _, r := range []io.Reader{
		strings.NewReader("short"),
		io.MultiReader(strings.NewReader("short"), iotest.ErrReader(errors.New("disk error"))),
	} {
		src := stream.NewSource(r, 1000, stream.SmallReads)
		_, err := io.ReadFull(src, make([]byte, 10))
		err = src.Blame("header", err)
		fmt.Println(err, errors.Is(err, stream.ErrInvalidLayer))
	}
	// Output:
	// header: the stream ends in its middle: invalid layer: failed precondition true
	// header: disk error false
}
