package dirwriter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestPanicWhileFilling checks that a panic in a goroutine that fills files becomes the error of the layer and does not
// end the process.
func TestPanicWhileFilling(t *testing.T) {
	var items []u.Item
	for n := range 300 {
		items = append(items, u.F(fmt.Sprintf("d%d/f%d", n%7, n), strings.Repeat("x", n)))
	}
	for _, descriptors := range []int{0, 5} { // with and without goroutines that fill files
		dir, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		w, err := New(int(dir.Fd()), Options{Descriptors: descriptors})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		w.small.fill = func(f *smallFile) error {
			if f.name == "d3/f3" {
				panic("panic of " + f.name)
			}
			return w.fillSmall(f)
		}
		_, err = tarlayer.Read(context.Background(), bytes.NewReader(u.Tar(t, items...)), w, nil)
		if !errors.Is(err, errdefs.ErrInternal) || !strings.Contains(err.Error(), "panic of d3/f3") {
			t.Errorf("%d descriptors: %v", descriptors, err)
		}
	}
}
