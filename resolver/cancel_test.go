package resolver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// blocked is a store whose writers block in Write, as while they hash the bytes of an earlier
// download. Writers that interrupt block until they are closed, others until release is closed.
type blocked struct {
	content.Store
	interrupt bool
	writes    chan struct{} // receives when a Write begins
	release   chan struct{}
}

type blockedWriter struct {
	content.Writer
	store   blocked
	writing atomic.Bool
	closed  chan struct{}
	once    sync.Once
	early   atomic.Bool // Close was called during Write
}

// interruptedWriter declares that Close ends its Write.
type interruptedWriter struct{ *blockedWriter }

func (interruptedWriter) CloseInterrupts() {}

func (b blocked) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := b.Store.Writer(ctx, opts...)
	var o content.WriterOpts
	for _, opt := range opts {
		err = errors.Join(err, opt(&o))
	}
	if err != nil || o.Desc.Size != layerBytes {
		return w, err
	}
	own := &blockedWriter{Writer: w, store: b, closed: make(chan struct{})}
	if b.interrupt {
		return interruptedWriter{own}, nil
	}
	return own, nil
}

func (w *blockedWriter) Write([]byte) (int, error) {
	w.writing.Store(true)
	defer w.writing.Store(false)
	w.store.writes <- struct{}{}
	if w.store.interrupt {
		<-w.closed
		return 0, errdefs.ErrFailedPrecondition
	}
	<-w.store.release
	if w.early.Load() {
		return 0, errors.New("closed during Write")
	}
	return 0, errdefs.ErrUnavailable
}

// Close waits for a running Close, because containerd's writer uses the ingest until Close returns.
func (w *blockedWriter) Close() (err error) {
	w.once.Do(func() {
		w.early.Store(w.writing.Load())
		close(w.closed)
		err = w.Writer.Close()
	})
	return err
}

// layerBytes is the size by which the store recognizes the layer.
const layerBytes = 8 << 10

// TestCancelDuringWrite checks that a canceled fetch closes a writer during Write only if the writer
// allows that: then the fetch does not wait for a store that hashes the bytes of an earlier download.
func TestCancelDuringWrite(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]bool{
		"a writer that Close interrupts": true, "another store's writer": false,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := registrytest.New(t)
			data := random(layerBytes)
			d := reg.Blob(ocispec.MediaTypeImageLayerGzip, data)
			reg.Image("1", amd64, []ocispec.Descriptor{d}, []digest.Digest{d.Digest})
			store := blocked{newStore(t), interrupt, make(chan struct{}, 1), make(chan struct{})}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := pull(ctx, newResolver(t, func(*Options) {}), store, reg.Host+"/x:1", nil)
				ended <- err
			}()
			<-store.writes
			cancel()
			if !interrupt {
				select {
				case err := <-ended:
					t.Fatalf("the fetch ended during Write: %v", err)
				case <-time.After(100 * time.Millisecond):
				}
				close(store.release)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			case <-time.After(time.Second):
				t.Fatal("the fetch has not ended")
			}
		})
	}
}
