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

// InFlight keeps the fetches into one store from downloading the same blob at the same time: the second waits for the
// first, and then finds the blob in the store, or goes on where the first gave up. It does not wait for a registry
// that is slow. Share one among the resolvers of a process that write to the same store. The zero value is not
// usable.
type InFlight struct {
	window time.Duration // rate.Window, but for tests

	mu    sync.Mutex // guards flights and what is in them
	blobs map[digest.Digest]*blobDownloads
}

// flight is the downloads of one blob and the fetches that wait for them.
type blobDownloads struct {
	slots   []*slot       // the downloads that run
	users   int           // turns, and fetches that wait for one
	changed chan struct{} // closed when a turn ends, and then replaced
}

// turn is one download.
type slot struct {
	source string
	bytes  atomic.Int64
	cancel context.CancelCauseFunc // ends it, because the blob has arrived from elsewhere

	meter rate.Meter // guarded by the mutex of InFlight
}

// NewInFlight makes an empty registry of downloads.
func NewInFlight() *InFlight {
	return &InFlight{window: rate.Window, blobs: map[digest.Digest]*blobDownloads{}}
}

// Len returns the number of blobs that are downloaded or waited for now.
func (f *InFlight) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.blobs)
}

// errArrived is the cause of the end of a download when another download has brought the blob.
var errDownloadedElsewhere = errors.New("the blob has arrived from another registry")

// take waits for a turn to download d from source, a registry. The context that it returns ends, with the cause
// errArrived, when another download of d was faster. The caller calls done when it has ended its download, and passes
// whether d is in the store now.
func (f *InFlight) begin(ctx context.Context, d digest.Digest, source string) (
	_ context.Context, t *slot, done func(arrived bool), err error,
) {
	f.mu.Lock()
	fl := f.blobs[d]
	if fl == nil {
		fl = &blobDownloads{changed: make(chan struct{})}
		f.blobs[d] = fl
	}
	fl.users++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		if fl.admits(source, time.Now()) {
			now := time.Now()
			t = &slot{source: source, meter: rate.NewMeter(now, f.window, 2*f.window)}
			ctx, t.cancel = context.WithCancelCause(ctx)
			fl.slots = append(fl.slots, t)
			f.mu.Unlock()
			return ctx, t, func(arrived bool) { f.done(d, fl, t, arrived) }, nil
		}
		changed := fl.changed
		f.mu.Unlock()
		look := time.NewTimer(f.window / 5)
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		look.Stop()
		if err != nil {
			f.mu.Lock()
			f.leave(d, fl)
			f.mu.Unlock()
			return nil, nil, nil, err
		}
	}
}

// admits reports whether another download may begin: if there is none, or if all of them are slow and none has the
// same source.
func (fl *blobDownloads) admits(source string, now time.Time) bool {
	admits := true
	for _, t := range fl.slots { // no early return: IsSlow also moves each window
		slow := t.meter.IsSlow(now, t.bytes.Load())
		admits = admits && slow && t.source != source
	}
	return admits
}

// done ends a turn. If the blob is in the store, it ends the other downloads of it.
func (f *InFlight) done(d digest.Digest, fl *blobDownloads, t *slot, arrived bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range fl.slots {
		if other == t {
			fl.slots = append(fl.slots[:i], fl.slots[i+1:]...)
			break
		}
	}
	if arrived {
		for _, other := range fl.slots {
			other.cancel(errDownloadedElsewhere)
		}
	}
	t.cancel(nil)
	close(fl.changed)
	fl.changed = make(chan struct{})
	f.leave(d, fl)
}

// leave is called with the mutex held.
func (f *InFlight) leave(d digest.Digest, fl *blobDownloads) {
	if fl.users--; fl.users == 0 {
		delete(f.blobs, d)
	}
}
