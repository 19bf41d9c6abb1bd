// Package durable makes provisional records of layers and root file systems durable.
//
// It owns nothing on disk: it syncs the file systems of layers/ and rootfs/, and sets the field Durable of records. Its
// invariant: it marks a record only after a sync that began after the record was added, and only if the record still
// describes the same bytes.
//
// The surprising rule: one sync serves all records that were added before it. While layers are being unpacked, a round
// waits for up to 5 s, because a sync would force half-written layers to the disk. A call of Sync ends this wait.
package durable

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// longestWait is the longest time that a round waits while layers are being unpacked.
const longestWait = 5 * time.Second

// Options are the options of New. nil means the zero value.
type Options struct {
	// Delay is how long a round waits for further records before it syncs. 0: it does not wait.
	Delay time.Duration
	// Busy reports whether layers are being unpacked. nil: no layers are.
	Busy func() bool
	// Observe is told about each sync. nil: syncs are not observed.
	Observe observe.Observer
}

// Syncer makes records durable, in rounds of one sync and one transaction.
type Syncer struct {
	dir   *rootdir.Dir
	db    *metadata.DB
	opts  Options
	kick  chan struct{} // a signal begins a round; buffers one
	hurry chan struct{} // a signal ends the wait of a round; buffers one
	done  chan struct{} // closed when loop has returned
	start sync.Once     // starts loop with the first round; Close without a round closes done instead

	// mu guards the fields below.
	mu      sync.Mutex
	cond    *sync.Cond               // is broadcast at the end of each round
	pending map[metadata.Node]string // version of each provisional record, from LayerVersion or RootfsVersion
	rounds  int                      // rounds that have ended
	err     error                    // of the last round
	closed  bool
}

// New returns a Syncer for the records of db. dir has the bytes that they describe. The caller closes both after the
// Syncer.
func New(dir *rootdir.Dir, db *metadata.DB, opts *Options) *Syncer {
	y := &Syncer{
		dir: dir, db: db, kick: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{}),
		pending: map[metadata.Node]string{},
	}
	if opts != nil {
		y.opts = *opts
	}
	if y.opts.Busy == nil {
		y.opts.Busy = func() bool { return false }
	}
	y.cond = sync.NewCond(&y.mu)
	return y
}

// LayerVersion returns the name of the directory of a layer. It changes if other bytes replace those of the layer.
func LayerVersion(l metadata.Layer) string { return l.Dir }

// RootfsVersion returns the time at which a rootfs was assembled. It changes if the rootfs is assembled again.
func RootfsVersion(r metadata.Rootfs) string { return r.Created.Format(time.RFC3339Nano) }

// Add adds a provisional record to the next round, but does not begin a round.
func (y *Syncer) Add(n metadata.Node, version string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.pending[n] = version
}

// Drop removes a record from the next round.
func (y *Syncer) Drop(n metadata.Node) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.pending, n)
}

// Begin begins a round in the background and returns at once. It must not be called after Close.
func (y *Syncer) Begin() {
	y.start.Do(func() { go y.loop() })
	signal(y.kick)
}

// signal sends a signal unless the channel has one already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sync returns nil when all records that were added before the call are durable. It returns the error of the round if
// that fails, and the error of ctx if ctx ends before.
func (y *Syncer) Sync(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.cond.Broadcast()
	})
	defer stop()
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.pending) == 0 {
		return nil
	}
	// A round that runs now may have begun before the last record was added, so wait for the next one as well.
	for until := y.rounds + 2; y.rounds < until && len(y.pending) > 0 && !y.closed; {
		signal(y.hurry)
		y.Begin()
		y.cond.Wait()
		if ctx.Err() != nil {
			return fmt.Errorf("sync: %w", ctx.Err())
		}
		if y.err != nil {
			return y.err
		}
	}
	return nil
}

// loop runs a round for each signal of kick, until Close.
func (y *Syncer) loop() {
	defer close(y.done)
	for range y.kick {
		y.wait()
		y.mu.Lock()
		nodes := maps.Clone(y.pending)
		y.mu.Unlock()
		err := y.round(nodes)
		if err != nil {
			log.L.WithError(err).Warn("sync: layers stay provisional")
		}
		y.mu.Lock()
		y.rounds++
		if y.err = err; err == nil {
			for n, version := range nodes {
				if y.pending[n] == version {
					delete(y.pending, n)
				}
			}
		}
		y.cond.Broadcast()
		y.mu.Unlock()
	}
}

// wait waits for further records of the same round: for Delay, and while layers are being unpacked, but for longestWait
// at most. A sync during an unpack would write half-written files to the disk, and the unpack would have to wait.
func (y *Syncer) wait() {
	for end := time.After(longestWait); ; {
		select {
		case <-time.After(y.opts.Delay):
			if !y.opts.Busy() {
				return
			}
		case <-end:
			return
		case <-y.hurry:
			return
		}
	}
}

// Close waits until a round that was begun has ended. Records that are provisional then stay provisional.
func (y *Syncer) Close() error {
	y.mu.Lock()
	y.closed = true
	y.mu.Unlock()
	close(y.kick)
	signal(y.hurry)
	y.start.Do(func() { close(y.done) })
	<-y.done
	return nil
}

// round syncs the file systems, and then marks those records that still exist and have the same version.
func (y *Syncer) round(nodes map[metadata.Node]string) (err error) {
	if len(nodes) == 0 {
		return nil
	}
	_, end := observe.Begin(context.Background(), y.opts.Observe, observe.Event{Kind: observe.Sync})
	marked := int64(0)
	defer func() {
		if err != nil {
			marked = 0
		}
		end(observe.Result{Err: err, Count: marked})
	}()
	if err := y.dir.Sync(rootdir.Layers, rootdir.Rootfs); err != nil {
		return err
	}
	return y.db.Batch(func(tx *metadata.Tx) error {
		marked = 0
		for n, version := range nodes {
			same, err := mark(tx, n, version)
			if err != nil {
				return err
			}
			if same {
				marked++
			}
		}
		return nil
	})
}

// mark marks a record as durable. It returns false if the record no longer exists or has another version.
func mark(tx *metadata.Tx, n metadata.Node, version string) (bool, error) {
	if n.Kind == metadata.KindRootfs {
		r, err := tx.Rootfs(digest.Digest(n.Key))
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil || RootfsVersion(r) != version {
			return false, err
		}
		r.Durable = true
		return true, tx.PutRootfs(r)
	}
	l, err := tx.Layer(n.Key)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil || LayerVersion(l) != version {
		return false, err
	}
	l.Durable = true
	return true, tx.PutLayer(l)
}
