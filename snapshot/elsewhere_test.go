package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// trickle is blobs that come from a registry that sends next to nothing, until they come from elsewhere.
type trickle struct {
	mu      sync.Mutex
	arrived memory
	gone    map[digest.Digest]chan struct{} // closed when the slow download of a blob is given up
}

func (b *trickle) Size(d digest.Digest) (int64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.arrived.Size(d)
}

func (b *trickle) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, here := b.arrived.Size(d); here {
		return b.arrived.Open(ctx, d)
	}
	if b.gone[d] == nil {
		b.gone[d] = make(chan struct{})
	}
	return &trickling{ctx, b.gone[d]}, nil
}

// arrive has a blob come from elsewhere, and then the slow download of it end.
func (b *trickle) arrive(d digest.Digest, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrived[d] = data
	if gone := b.gone[d]; gone != nil {
		close(gone)
	}
}

type trickling struct {
	ctx  context.Context
	gone chan struct{}
}

func (r *trickling) Read([]byte) (int, error) {
	select {
	case <-r.gone:
		return 0, errdefs.ErrUnavailable
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

func (r *trickling) Close() error { return nil }

// TestBlobFromElsewhere shows that a layer is unpacked when its blob is here, whatever became of a slow download of
// it that was followed, and though slow downloads of other layers take all that may follow one.
func TestBlobFromElsewhere(t *testing.T) {
	requireRoot(t)
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	b := &trickle{arrived: memory{}, gone: map[digest.Digest]chan struct{}{}}
	s, err := snapshot.Open(root, db, b, &snapshot.Options{SyncDelay: -1})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(s.Close(), db.Close())) })

	unpack := func(l layer.Pair, data []byte) {
		t.Helper()
		s.Layers().Announce([]layer.Pair{l})
		time.Sleep(50 * time.Millisecond) // so that it is followed, or waits to be
		b.arrive(l.Blob.Digest, data)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := s.Layers().Unpack(ctx, holder, l)
		must(t, err)
	}
	blobs := memory{}
	followed := blobs.add(t, Tar(t, F("a", "1")))
	unpack(followed, blobs[followed.Blob.Digest])

	var slow []layer.Pair
	for i := range 64 {
		d := digest.FromString(fmt.Sprint(i))
		slow = append(slow,
			layer.Pair{Blob: ocispec.Descriptor{Digest: d, MediaType: ocispec.MediaTypeImageLayerGzip, Size: 1}})
	}
	s.Layers().Announce(slow)
	time.Sleep(100 * time.Millisecond)
	waits := blobs.add(t, Tar(t, F("b", "2")))
	unpack(waits, blobs[waits.Blob.Digest])

	// A descriptor with another size is not of the blob that is here.
	for _, size := range []int64{1, 1 << 62} {
		lie := waits
		lie.Blob.Size = size
		if _, err := s.Layers().Unpack(t.Context(), holder, lie); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a size of %d: %v", size, err)
		}
	}
}
