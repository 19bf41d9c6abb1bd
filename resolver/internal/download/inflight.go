package download

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rate"
)

// InFlight keeps the downloads into one store from downloading the same blob at the same time. The
// second download of a blob waits for the first, and then finds the blob in the store or resumes
// where the first failed. It does not wait for a registry that is slow (package rate): if it has
// another source, it downloads the blob as well, and the download that completes first ends the
// others.
//
// Share one InFlight among all resolvers of a process that write to the same store. Make it with
// NewInFlight.
type InFlight struct {
	window time.Duration // after which a download is judged; tests shorten it

	mu    sync.Mutex // guards blobs and what is in them
	blobs map[digest.Digest]*blobDownloads
}

// blobDownloads are the downloads of one blob.
type blobDownloads struct {
	slots   []*slot       // the downloads that are running
	users   int           // the running and the waiting downloads
	changed chan struct{} // closed when a download ends, and then replaced
}

// slot is the permission to download a blob.
type slot struct {
	source string
	bytes  atomic.Int64            // received so far
	cancel context.CancelCauseFunc // ends the download

	meter rate.Meter // guarded by the mutex of InFlight
}

// NewInFlight makes an InFlight without downloads.
func NewInFlight() *InFlight {
	return &InFlight{window: rate.Window, blobs: map[digest.Digest]*blobDownloads{}}
}

// Len returns the number of blobs that have running or waiting downloads.
func (f *InFlight) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.blobs)
}

// errDownloadedElsewhere is the cause with which a download is canceled after another one has
// completed the blob.
var errDownloadedElsewhere = errors.New("another download has completed the blob")

// begin waits until blob d may be downloaded from source, a registry. The context that it returns
// is canceled with the cause errDownloadedElsewhere when another download completes the blob. The
// caller calls done when its download has ended, and passes whether the store has the blob.
func (f *InFlight) begin(ctx context.Context, d digest.Digest, source string) (
	_ context.Context, s *slot, done func(stored bool), err error,
) {
	f.mu.Lock()
	b := f.blobs[d]
	if b == nil {
		b = &blobDownloads{changed: make(chan struct{})}
		f.blobs[d] = b
	}
	b.users++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		now := time.Now()
		if b.admits(source, now) {
			s = &slot{source: source, meter: rate.NewMeter(now, f.window, 2*f.window)}
			ctx, s.cancel = context.WithCancelCause(ctx)
			b.slots = append(b.slots, s)
			f.mu.Unlock()
			return ctx, s, func(stored bool) { f.done(d, b, s, stored) }, nil
		}
		changed := b.changed
		f.mu.Unlock()
		judge := time.NewTimer(f.window / 5)
		select {
		case <-changed:
		case <-judge.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		judge.Stop()
		if err != nil {
			f.mu.Lock()
			f.leave(d, b)
			f.mu.Unlock()
			return nil, nil, nil, err
		}
	}
}

// admits reports whether another download may begin: if none is running, or if all running
// downloads are slow and have other sources. The caller holds the mutex.
func (b *blobDownloads) admits(source string, now time.Time) bool {
	admits := true
	for _, s := range b.slots { // all of them, because IsSlow also ends their windows
		slow := s.meter.IsSlow(now, s.bytes.Load())
		admits = admits && slow && s.source != source
	}
	return admits
}

// done ends a download. If the store has the blob, done cancels the other downloads of it.
func (f *InFlight) done(d digest.Digest, b *blobDownloads, s *slot, stored bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range b.slots {
		if other == s {
			b.slots = append(b.slots[:i], b.slots[i+1:]...)
			break
		}
	}
	if stored {
		for _, other := range b.slots {
			other.cancel(errDownloadedElsewhere)
		}
	}
	s.cancel(nil)
	close(b.changed)
	b.changed = make(chan struct{})
	f.leave(d, b)
}

// leave forgets the blob when its last download has left. The caller holds the mutex.
func (f *InFlight) leave(d digest.Digest, b *blobDownloads) {
	if b.users--; b.users == 0 {
		delete(f.blobs, d)
	}
}
