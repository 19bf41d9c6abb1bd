package resolver

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// panicking is a store in which writing a large blob panics after some bytes.
type panicking struct{ content.Store }

func (s panicking) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	return panickingWriter{w}, err
}

type panickingWriter struct{ content.Writer }

func (w panickingWriter) Write(p []byte) (int, error) {
	st, err := w.Status()
	if err != nil {
		return 0, err
	}
	if st.Offset > testChunk {
		panic("a write")
	}
	return w.Writer.Write(p)
}

// TestPanic checks that a panic in another goroutine of a fetch is an error of the fetch, and that
// the next fetch succeeds.
func TestPanic(t *testing.T) {
	reg, data, r := large(t)
	store := newStore(t)
	for name, fetch := range map[string]func() error{
		"a write": func() error {
			_, err := pull(t.Context(), r, panicking{store}, reg.Host+"/x:1", nil)
			return err
		},
		"a callback": func() error {
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1",
				&FetchOptions{OnLayer: func(ocispec.Descriptor) error { panic("a callback") }})
			return err
		},
	} {
		if err := fetch(); !errors.Is(err, errdefs.ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
		t.Fatal(err)
	}
	holds(t, store, data)
}
