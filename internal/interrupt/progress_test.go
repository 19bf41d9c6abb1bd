package interrupt

import (
	"io"
	"strings"
	"testing"
)

// TestWatch: loops and copies are seen by whoever watches their context, and by nobody else.
func TestWatch(t *testing.T) {
	ctx, steps := Watch(t.Context())
	other, none := Watch(t.Context())
	before := Shared()
	if err := Copy(ctx, io.Discard, strings.NewReader("text")); err != nil {
		t.Fatal(err)
	}
	copied := steps()
	if copied == 0 {
		t.Error("a copy is not seen")
	}
	next := Every(ctx)
	for range 1000 {
		if err := next(); err != nil {
			t.Fatal(err)
		}
	}
	if steps() == copied {
		t.Error("a loop is not seen")
	}
	if n := Shared() - before; n != 0 {
		t.Errorf("%d steps of one context are taken for shared ones", n)
	}
	if ShareStep(); Shared() == before {
		t.Error("a shared step is not seen")
	}
	if n := none(); n != 0 || other.Err() != nil {
		t.Errorf("another context: %d steps, %v", n, other.Err())
	}
}
