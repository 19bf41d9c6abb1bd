package resolver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// blocked is a store whose writers block in Write, as while they hash the bytes of an earlier
// download, until they are closed.
type blocked struct {
	content.Store
	writes chan struct{}
}

type blockedWriter struct {
	content.Writer
	store  blocked
	closed chan struct{}
	once   sync.Once
}

func (b blocked) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := b.Store.Writer(ctx, opts...)
	var o content.WriterOpts
	for _, opt := range opts {
		err = errors.Join(err, opt(&o))
	}
	if err != nil || o.Desc.Size != layerBytes {
		return w, err
	}
	return &blockedWriter{Writer: w, store: b, closed: make(chan struct{})}, nil
}

func (w *blockedWriter) Write([]byte) (int, error) {
	w.store.writes <- struct{}{}
	<-w.closed
	return 0, errdefs.ErrFailedPrecondition
}

// Close waits for a running Close, because containerd's writer uses the ingest until Close returns.
func (w *blockedWriter) Close() (err error) {
	w.once.Do(func() {
		close(w.closed)
		err = w.Writer.Close()
	})
	return err
}

// layerBytes is the size by which the store recognizes the layer.
const layerBytes = 8 << 10

// TestCancelDuringHash checks that a canceled fetch does not wait for a store that hashes the bytes
// of an earlier download.
func TestCancelDuringHash(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	data := random(layerBytes)
	d := reg.Blob(ocispec.MediaTypeImageLayerGzip, data)
	reg.Image("1", amd64, []ocispec.Descriptor{d}, []digest.Digest{d.Digest})
	store := blocked{newStore(t), make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := pull(ctx, newResolver(t, func(*Options) {}), store, reg.Host+"/x:1", nil)
		ended <- err
	}()
	<-store.writes
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(time.Second):
		t.Fatal("the fetch has not ended")
	}
}
