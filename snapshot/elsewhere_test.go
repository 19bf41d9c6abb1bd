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

// trickle serves blobs from a registry that sends almost nothing until arrive adds them from
// another source.
type trickle struct {
	mu      sync.Mutex // guards what follows
	arrived memory
	gone    map[digest.Digest]chan struct{} // by blob; closed when the slow download of the blob fails
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

// arrive adds a blob from another source and then ends its slow download.
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

// TestBlobFromElsewhere shows that a layer is unpacked once its blob is in the store, even if an
// unpack followed a slow download of the blob that failed, and even if slow downloads of other
// layers take all slots for following downloads.
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
		time.Sleep(50 * time.Millisecond) // until the unpack follows the download or waits for a free slot
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

	// A descriptor with another size does not match the stored blob.
	for _, size := range []int64{1, 1 << 62} {
		lie := waits
		lie.Blob.Size = size
		if _, err := s.Layers().Unpack(t.Context(), holder, lie); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a size of %d: %v", size, err)
		}
	}
}
