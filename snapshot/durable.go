package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// syncer turns provisional records durable: one syncfs for all that were recorded before it.
type syncer struct {
	s     *Store
	kick  chan struct{} // begins a round; has room for one
	hurry chan struct{} // the round waits for nobody else; has room for one
	done  chan struct{}

	// mu guards the fields below; cond is signalled when a round is over.
	mu      sync.Mutex
	cond    *sync.Cond
	pending map[metadata.Node]struct{}
	rounds  int
	err     error // of the last round
	closed  bool
}

func newSyncer(s *Store) *syncer {
	y := &syncer{s: s, kick: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{}), pending: map[metadata.Node]struct{}{}}
	y.cond = sync.NewCond(&y.mu)
	go y.loop()
	return y
}

// add says that a record is provisional. Nobody waits.
func (y *syncer) add(n metadata.Node) {
	y.mu.Lock()
	y.pending[n] = struct{}{}
	y.mu.Unlock()
}

// settleSoon has what is provisional turned durable soon, without waiting for it.
func (s *Store) settleSoon() {
	if s.opts.SyncDelay >= 0 {
		s.syncer.wake()
	}
}

func (y *syncer) wake() { signal(y.kick) }

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
		select {
		case <-time.After(y.s.opts.SyncDelay):
		case <-y.hurry:
		}
		y.mu.Lock()
		nodes := make([]metadata.Node, 0, len(y.pending))
		for n := range y.pending {
			nodes = append(nodes, n)
		}
		y.mu.Unlock()
		err := y.s.makeDurable(nodes)
		if err != nil {
			log.L.WithError(err).Warn("sync: layers stay provisional")
		}
		y.mu.Lock()
		y.rounds++
		if y.err = err; err == nil {
			for _, n := range nodes {
				delete(y.pending, n)
			}
		}
		y.cond.Broadcast()
		y.mu.Unlock()
	}
}

// close ends the loop. What is still provisional is found out by who opens the root next.
func (y *syncer) close() error {
	y.mu.Lock()
	y.closed = true
	y.mu.Unlock()
	close(y.kick)
	<-y.done
	return nil
}

// makeDurable syncs the file system and then says so in the records that are still there.
func (s *Store) makeDurable(nodes []metadata.Node) error {
	if len(nodes) == 0 {
		return nil
	}
	if err := s.syncfs(); err != nil {
		return err
	}
	return s.db.Update(func(tx *metadata.Tx) error {
		for _, n := range nodes {
			var err error
			if n.Kind == metadata.KindRootfs {
				var r metadata.Rootfs
				if r, err = tx.Rootfs(digest.Digest(n.Key)); err == nil {
					r.Durable = true
					err = tx.PutRootfs(r)
				}
			} else {
				var l metadata.Layer
				if l, err = tx.Layer(n.Key); err == nil {
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

func (s *Store) syncfs() error {
	f, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("root %s: syncfs: %w", s.root, err)
	}
	return nil
}

// suspect says whether another process left the record provisional and nobody has compared it yet.
func (s *Store) suspect(n metadata.Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.suspects[n]
	return ok
}

// trusted says that the node was found to be what its seal says. Nothing says yet that it is on the disk.
func (s *Store) trusted(n metadata.Node) {
	s.mu.Lock()
	delete(s.suspects, n)
	s.mu.Unlock()
	s.syncer.add(n)
	s.settleSoon()
}

// replaced says that the node is not what it was: it is gone, or durable from the start.
func (s *Store) replaced(n metadata.Node) {
	s.mu.Lock()
	delete(s.suspects, n)
	s.mu.Unlock()
	s.syncer.mu.Lock()
	delete(s.syncer.pending, n)
	s.syncer.mu.Unlock()
}

// trustLayer compares a suspect layer with its seal before it is served, and unpacks it again when it differs. It
// returns the record as it is then. errdefs.ErrDataLoss when the layer is broken and its blob is not here.
func (s *Store) trustLayer(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	n := metadata.LayerNode(rec.Key)
	if !s.suspect(n) {
		return rec, nil
	}
	defer s.locks.lock("trust/" + rec.Key)()
	if !s.suspect(n) {
		return s.layer(rec.Key) // another call was quicker
	}
	err := s.intact(s.path("layers", rec.Dir, "fs"), s.path("layers", rec.Dir, "seal"))
	if errdefs.IsDataLoss(err) || errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("layer", rec.Key).Warn("layer was not written out before the last stop: unpacking it again")
		rec, err = s.unpackAgain(ctx, rec)
	}
	if err != nil {
		return rec, fmt.Errorf("layer %s: %w", rec.Key, err)
	}
	s.trusted(n)
	return rec, nil
}

func (s *Store) layer(key string) (rec metadata.Layer, err error) {
	err = s.db.View(func(tx *metadata.Tx) error {
		rec, err = tx.Layer(key)
		return err
	})
	return rec, err
}

// intact compares a directory with its seal; errdefs.ErrDataLoss names the first difference.
func (s *Store) intact(dir, seal string) error {
	sealed, err := readSeal(seal)
	if err != nil {
		return err
	}
	found, err := readTree(dir)
	if err != nil {
		return err
	}
	compareSeal(sealed, found, func(path, what string) {
		if err == nil {
			err = fmt.Errorf("%s: %s: %w", path, what, errLost)
		}
	})
	return err
}

func readTree(dir string) ([]unpack.Entry, error) {
	f, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("directory %s: missing: %w", dir, errdefs.ErrDataLoss)
		}
		return nil, err
	}
	defer f.Close()
	return unpack.ReadTree(f)
}

// unpackAgain makes a broken layer's directory anew from its blob and puts it into the record; mounts that are made
// later use it. A fix-up is made anew from the layer and the parent it belongs to.
func (s *Store) unpackAgain(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	if strings.HasPrefix(rec.Key, "fixup/") {
		return s.fixAgain(ctx, rec)
	}
	var blobs []digest.Digest
	if err := s.db.View(func(tx *metadata.Tx) error { blobs = tx.BlobsOf(rec.DiffID); return nil }); err != nil {
		return rec, err
	}
	for _, b := range blobs {
		if _, here := s.blobs.Size(b); !here {
			continue
		}
		if _, err := s.repair(ctx, &rec, b); err != nil {
			return rec, err
		}
		return rec, nil
	}
	return rec, fmt.Errorf("broken, and its blob is not here: %w", errdefs.ErrDataLoss)
}

// repair extracts the blob once more and gives the layer the new directory.
func (s *Store) repair(ctx context.Context, rec *metadata.Layer, blob digest.Digest) (metadata.Layer, error) {
	j := &unpackJob{layer: Layer{Blob: ocispec.Descriptor{Digest: blob}}}
	defer func() {
		if j.dir != "" {
			if err := s.trash(j.dir); err != nil {
				log.G(ctx).WithError(err).Warn("repair: staging is left")
			}
		}
	}()
	if err := s.unpack(ctx, j); err != nil {
		return *rec, err
	}
	if j.diffID != rec.DiffID {
		return *rec, fmt.Errorf("blob %s has diff ID %s now: %w", blob, j.diffID, errdefs.ErrDataLoss)
	}
	return *rec, s.swap(rec, j.dir)
}

// swap gives a layer's record a new directory from staging, and deletes the old one.
func (s *Store) swap(rec *metadata.Layer, staged string) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	old := rec.Dir
	err := s.db.Update(func(tx *metadata.Tx) error {
		now, err := tx.Layer(rec.Key)
		if err != nil {
			return err
		}
		id, err := tx.NextID()
		if err != nil {
			return err
		}
		now.Dir, now.Durable = strconv.FormatUint(id, 10), false
		if err := os.Rename(staged, s.path("layers", now.Dir)); err != nil {
			return err
		}
		*rec = now
		return tx.PutLayer(now)
	})
	if err != nil {
		return err
	}
	return s.trash(s.path("layers", old))
}

// fixAgain makes a broken fix-up anew for a snapshot that stands on it.
func (s *Store) fixAgain(ctx context.Context, rec metadata.Layer) (metadata.Layer, error) {
	var sn *metadata.Snapshot
	err := s.db.View(func(tx *metadata.Tx) error {
		for _, h := range tx.Holders(metadata.LayerNode(rec.Key)) {
			key, ok := strings.CutPrefix(string(h), string(metadata.SnapshotHolder("")))
			if !ok {
				continue
			}
			found, err := tx.Snapshot(key)
			if err != nil {
				return err
			}
			if found.Fixup == rec.Key || found.Root == rec.Key {
				sn = &found
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return rec, err
	}
	if sn == nil {
		return rec, fmt.Errorf("broken, and no snapshot stands on it: %w", errdefs.ErrDataLoss)
	}
	staged, err := s.stageFixup(ctx, *sn, rec.Key)
	if err != nil {
		return rec, err
	}
	return rec, s.swap(&rec, staged)
}
