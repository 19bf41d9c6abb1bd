package layer

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// syncMost is how long a layer that was committed stays provisional while others are being unpacked.
const syncMost = 5 * time.Second

// syncer turns provisional records durable: one syncfs for all that were recorded before it.
type syncer struct {
	s     *Store
	kick  chan struct{} // begins a round; has room for one
	hurry chan struct{} // the round waits for nobody else; has room for one
	done  chan struct{} // closed when loop has ended
	start sync.Once     // starts loop with the first round, which most commands never need, or closes done

	// mu guards the fields below; cond is signalled when a round is over.
	mu      sync.Mutex
	cond    *sync.Cond
	pending map[metadata.Node]string // which version of it: a layer's directory, a rootfs's time
	rounds  int
	err     error // of the last round
	closed  bool
}

func newSyncer(s *Store) *syncer {
	y := &syncer{s: s, kick: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{}), pending: map[metadata.Node]string{}}
	y.cond = sync.NewCond(&y.mu)
	return y
}

// add says that a record is provisional. Nobody waits.
func (y *syncer) add(n metadata.Node, version string) {
	y.mu.Lock()
	y.pending[n] = version
	y.mu.Unlock()
}

// SyncSoon has provisional records made durable in the background, after Options.SyncDelay.
func (s *Store) SyncSoon() {
	if s.opts.SyncDelay >= 0 {
		s.syncer.wake()
	}
}

// drop forgets a node that is not to be made durable.
func (y *syncer) drop(n metadata.Node) {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.pending, n)
}

func (y *syncer) wake() {
	y.start.Do(func() { go y.loop() })
	signal(y.kick)
}

// signal sends, unless one is there that nobody took yet.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sync returns when all that was recorded before the call is durable.
func (s *Store) Sync(ctx context.Context) error {
	y := s.syncer
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
	// The round that runs may have begun before the last record: wait for the one after it.
	for until := y.rounds + 2; y.rounds < until && len(y.pending) > 0 && !y.closed; {
		signal(y.hurry)
		y.wake()
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

func (y *syncer) loop() {
	defer close(y.done)
	for range y.kick {
		y.gather()
		y.mu.Lock()
		nodes := maps.Clone(y.pending)
		y.mu.Unlock()
		err := y.s.makeDurable(nodes)
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

// gather waits for others to share a round with: as long as layers are being unpacked, whose bytes would be forced out half-written and whose
// work would wait for that, but at most for syncMost.
func (y *syncer) gather() {
	for end := time.After(syncMost); ; {
		select {
		case <-time.After(y.s.opts.SyncDelay):
			if !y.s.unpacks.busy() {
				return
			}
		case <-end:
			return
		case <-y.hurry:
			return
		}
	}
}

// close ends the loop. What is still provisional is found out by who opens the root next.
func (y *syncer) close() error {
	y.mu.Lock()
	y.closed = true
	y.mu.Unlock()
	close(y.kick)
	signal(y.hurry)
	y.start.Do(func() { close(y.done) })
	<-y.done
	return nil
}

// makeDurable syncs the file system and then says so in the records that are still there and still of that version.
func (s *Store) makeDurable(nodes map[metadata.Node]string) error {
	if len(nodes) == 0 {
		return nil
	}
	if err := s.dir.Sync(rootdir.Layers, rootdir.Rootfs); err != nil {
		return err
	}
	return s.db.Batch(func(tx *metadata.Tx) error {
		for n, version := range nodes {
			var err error
			if n.Kind == metadata.KindRootfs {
				var r metadata.Rootfs
				if r, err = tx.Rootfs(digest.Digest(n.Key)); err == nil && rootfsVersion(r) == version {
					r.Durable = true
					err = tx.PutRootfs(r)
				}
			} else {
				var l metadata.Layer
				if l, err = tx.Layer(n.Key); err == nil && l.Dir == version {
					l.Durable = true
					err = tx.PutLayer(l)
				}
			}
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// rootfsVersion tells a rootfs from one that was assembled in its place.
func rootfsVersion(r metadata.Rootfs) string { return r.Created.Format(time.RFC3339Nano) }
