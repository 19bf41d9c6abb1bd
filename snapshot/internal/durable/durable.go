// Package durable makes provisional records of layers and root file systems durable.
//
// It owns nothing on disk: it syncs the file systems of layers/ and rootfs/, and sets Durable in
// records. Its invariant: a record is marked only if the sync that came before began after the record
// was added, and only if the record still describes the same bytes.
//
// The surprising rule: one sync serves all records that were added before it, and waits until no layer is being
// unpacked, because it would force half-written layers to the disk.
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

// longestWait is how long a round waits while layers are being unpacked.
const longestWait = 5 * time.Second

// Options of New. nil means the zero value.
type Options struct {
	// Delay is how long a round waits for others to share it with. 0: it does not wait.
	Delay time.Duration
	// Busy reports whether layers are being unpacked. nil: none ever is.
	Busy func() bool
	// Observe sees syncs. nil: nobody does.
	Observe observe.Observer
}

// Syncer makes records durable, in rounds of one sync and one transaction.
type Syncer struct {
	dir   *rootdir.Dir
	db    *metadata.DB
	opts  Options
	kick  chan struct{} // begins a round; buffers one
	hurry chan struct{} // ends the wait of a round; buffers one
	done  chan struct{} // closed when loop has ended
	start sync.Once     // starts loop with the first round, which most commands never need, or closes done

	// mu guards the fields below. cond is signalled at the end of a round.
	mu      sync.Mutex
	cond    *sync.Cond
	pending map[metadata.Node]string // the version that was added, as LayerVersion or RootfsVersion return it
	rounds  int
	err     error // of the last round
	closed  bool
}

// New returns a Syncer for the records of db, whose bytes are in dir. Both stay the caller's to close.
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

// LayerVersion distinguishes the bytes of a layer from those that replace them: by the name of their directory.
func LayerVersion(l metadata.Layer) string { return l.Dir }

// RootfsVersion distinguishes a rootfs from one that was assembled in its place: by its time.
func RootfsVersion(r metadata.Rootfs) string { return r.Created.Format(time.RFC3339Nano) }

// Add adds a provisional record to the next round, and begins none.
func (y *Syncer) Add(n metadata.Node, version string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.pending[n] = version
}

// Drop forgets a record that is not to be made durable.
func (y *Syncer) Drop(n metadata.Node) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.pending, n)
}

// Begin begins a round in the background. It must not be called after Close.
func (y *Syncer) Begin() {
	y.start.Do(func() { go y.loop() })
	signal(y.kick)
}

// signal sends unless the channel is full.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sync returns when all records that were added before the call are durable, with the error of the round otherwise.
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
	// A round that runs now may have begun before the last record was added: wait for the one after it.
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

// wait waits for others to share the round with. It goes on while layers are being unpacked, for longestWait at most: a
// sync would force their bytes out half-written, and they would wait for it.
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

// Close ends the rounds. What is provisional then stays provisional.
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

// round syncs the file systems and then marks those records that exist and still have the same version.
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

// mark marks a record as durable. It reports false for a record that is gone or has another version.
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
