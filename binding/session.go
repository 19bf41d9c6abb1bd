package binding

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/caller"
	"github.com/tank-snapshotter/tank/metadata"
)

// Session is one process that calls, as long as it runs.
type Session struct {
	b       *Binder
	process caller.Process
	file    caller.File // the zero value when nothing is known of it

	holder  atomic.Pointer[metadata.Holder]
	sampled atomic.Int64 // when the database was looked at last, in nanoseconds
	made    sync.Map     // namespaces in which a snapshot was made
	known   sync.Map     // namespaces in which an older snapshot was named

	continued bool // the process was connected before Tank started

	// What follows is guarded by Binder.mu.
	connections int
	binding     metadata.Binding
	left        []metadata.Holder // acted for before a takeover; calls that ran meanwhile may still hold something for them
	suspects    []metadata.Holder // may be what the database was, as far as it is known; nil: all
}

// Holder returns the holder that the process acts for at the moment.
func (s *Session) Holder() metadata.Holder { return *s.holder.Load() }

func (s *Session) setHolder(h metadata.Holder) { s.holder.Store(&h) }

// End says that a connection has ended.
func (s *Session) End() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.connections--; s.connections > 0 {
		return
	}
	s.b.wg.Go(s.record)
}

// record records when the process was connected last, and how far its database was then.
func (s *Session) record() {
	writes := caller.Writes(s.file)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.binding.Seen = time.Now().UTC()
	s.binding.Writes = max(s.binding.Writes, writes)
	if err := s.b.db.Update(func(tx *metadata.Tx) error {
		bs, err := tx.Bindings()
		same := func(r metadata.Binding) bool { return r.ID == s.binding.ID && r.Holder == s.binding.Holder }
		if err != nil || !slices.ContainsFunc(bs, same) {
			return err // another database took its place
		}
		return tx.PutBinding(s.binding)
	}); err != nil {
		log.L.WithError(err).WithField("holder", s.binding.Holder).Warn("it is not recorded that a containerd was seen")
	}
}

// Named says that the process named a snapshot that its holder has.
func (s *Session) Named(key string) {
	ns, _, ok := metadata.Sequence(key)
	if !ok {
		return
	}
	if _, made := s.made.Load(ns); !made {
		s.known.LoadOrStore(ns, true)
	}
}

// sampleEvery is how often the number of transactions in a database is looked at while it is in use.
const sampleEvery = 30 * time.Second

// Making is called before a snapshot is made under key.
func (s *Session) Making(ctx context.Context, key string) error {
	ns, sequence, ok := metadata.Sequence(key)
	if !ok {
		return nil
	}
	now := time.Now().UnixNano()
	if last := s.sampled.Load(); now-last > int64(sampleEvery) && s.sampled.CompareAndSwap(last, now) {
		s.sample()
	}
	if _, made := s.made.Load(ns); made {
		return nil
	}
	return s.first(ctx, ns, sequence)
}

func (s *Session) sample() {
	writes := caller.Writes(s.file)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.binding.Writes = max(s.binding.Writes, writes)
}

// first is called before the first snapshot in a namespace is made. containerd numbers them, and never takes a number
// twice: a database that begins again below what its holder has was emptied or restored, although its file is the same.
func (s *Session) first(ctx context.Context, ns string, sequence uint64) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if _, made := s.made.Load(ns); made {
		return nil
	}
	changed, err := s.begin(ctx, ns, sequence)
	if err != nil {
		return err
	}
	if changed {
		s.setHolder(s.binding.Holder)
	}
	s.made.Store(ns, true)
	return nil
}

// begin changes the binding for the first snapshot in a namespace, if that is due.
func (s *Session) begin(ctx context.Context, ns string, sequence uint64) (changed bool, err error) {
	if s.binding.ID == direct {
		return false, nil
	}
	// A process that goes on may send a smaller number late: calls at once, of which one is repeated after Tank's restart.
	last := uint64(0)
	if !s.continued {
		if err := s.b.db.View(func(tx *metadata.Tx) error {
			last = tx.LastSequence(s.binding.Holder, ns)
			return nil
		}); err != nil {
			return false, err
		}
	}
	anew := sequence <= last
	if _, known := s.known.Load(ns); anew && known {
		anew = false
		if err := s.b.opts.SetAside(s.binding.Holder, ns, sequence); err != nil {
			return false, err
		}
	}
	if !anew && (s.binding.Settled || s.binding.First[ns] != 0) {
		return false, nil
	}
	before := s.binding
	err = s.b.db.Update(func(tx *metadata.Tx) error {
		if anew {
			log.G(ctx).WithFields(log.Fields{"namespace": ns, "sequence": sequence, "last": last}).
				Warn("a containerd counts anew")
			bs, err := tx.Bindings()
			if err != nil {
				return err
			}
			if err := s.replace(tx, bs, s.binding); err != nil {
				return err
			}
		}
		if !s.binding.Settled && s.binding.First[ns] == 0 {
			first := maps.Clone(s.binding.First)
			if first == nil {
				first = map[string]uint64{}
			}
			first[ns] = sequence
			s.binding.First = first
		}
		s.binding.Seen = time.Now().UTC()
		return tx.PutBinding(s.binding)
	})
	if err != nil {
		s.binding = before
		return false, err
	}
	if anew {
		s.suspects = nil
	}
	return true, nil
}

// Claim is called when a snapshot that the process named was not found. It reports whether the process acts for another
// holder since, so that the call is to be made again.
//
// A database has a record of a snapshot because its holder made it, or because the database is an older one that was
// moved or restored. It is the latter when the number is below the first one that it made here itself.
func (s *Session) Claim(ctx context.Context, key string) bool {
	if key == "" {
		return false
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.gather(ctx, key) {
		return true
	}
	ns, sequence, ok := metadata.Sequence(key)
	if !ok || s.binding.Settled {
		return false
	}
	if first := s.binding.First[ns]; first != 0 && sequence >= first {
		return false
	}
	var candidates []former
	if err := s.b.db.View(func(tx *metadata.Tx) (err error) {
		candidates, err = s.candidates(ctx, tx, key)
		return err
	}); err != nil {
		log.G(ctx).WithError(err).Warn("whose snapshot it is can't be found out")
		return false
	}
	if len(candidates) > 1 {
		candidates = s.mentioned(ctx, candidates)
	}
	switch {
	case len(candidates) == 0:
		return false
	case len(candidates) == 1 && s.descends(ctx, candidates[0]):
		return s.takeOver(ctx, candidates[0].holder, key)
	}
	s.suspects = nil
	for _, f := range candidates {
		s.suspects = append(s.suspects, f.holder)
	}
	log.G(ctx).WithFields(log.Fields{"key": key, "holders": names(s.suspects), "holder": s.binding.Holder}).
		Warn("former containerds had this snapshot, and it is not certain that this is one of them: see release --to")
	return false
}

// takeOver makes the session act for the holder h, which has the snapshot key, and gives h what the session held so
// far.
func (s *Session) takeOver(ctx context.Context, h metadata.Holder, key string) bool {
	own, next := s.binding.Holder, s.binding
	next.Holder, next.Settled, next.First, next.Seen = h, true, nil, time.Now().UTC()
	for ns, first := range s.binding.First { // what h has from there on was made after the backup
		if err := s.b.opts.SetAside(h, ns, first); err != nil {
			log.G(ctx).WithError(err).Error("a containerd's database was recognized, and can't be bound")
			return false
		}
	}
	err := s.b.opts.HandOver(own, h, func(tx *metadata.Tx) error {
		if err := s.b.forget(tx, h); err != nil {
			return err
		}
		return tx.PutBinding(next)
	})
	if err != nil {
		log.G(ctx).WithError(err).Error("a containerd's database was recognized, and can't be bound")
		return false
	}
	s.binding, s.suspects = next, nil
	s.Named(key)
	s.left = append(s.left, own)
	s.setHolder(h)
	log.G(ctx).WithFields(log.Fields{"holder": h, "database": s.file.Path}).
		Info("a containerd was recognized by a snapshot that it named")
	return true
}

// gather gives the session's holder what calls that ran during a takeover have left to earlier ones. It reports whether
// that was the snapshot key.
func (s *Session) gather(ctx context.Context, key string) bool {
	h := s.binding.Holder
	for _, old := range s.left {
		found := false
		if err := s.b.db.View(func(tx *metadata.Tx) error {
			found = tx.Holds(old, metadata.SnapshotNode(old.SnapshotKey(key)))
			return nil
		}); err != nil || !found {
			continue
		}
		if err := s.b.opts.HandOver(old, h, func(*metadata.Tx) error { return nil }); err != nil {
			log.G(ctx).WithError(err).Warn("what was made during a takeover stays with the former holder")
			continue
		}
		return true
	}
	return false
}

// Left says that a call which acted for the holder old has ended. What it did after a takeover is given to the holder
// that the session acts for by now.
func (s *Session) Left(ctx context.Context, old metadata.Holder) {
	if old == s.Holder() {
		return
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if old == s.binding.Holder || !slices.Contains(s.left, old) {
		return // it acts for old again, or old was emptied: then it keeps what it has
	}
	if err := s.b.opts.HandOver(old, s.binding.Holder, func(*metadata.Tx) error { return nil }); err != nil {
		log.G(ctx).WithError(err).Warn("what was made during a takeover stays with the former holder")
	}
}
