package binding

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/metadata"
)

// Session is one calling process. It lasts as long as the process runs.
type Session struct {
	b       *Binder
	process peer.Process
	file    containerddb.File // the zero value when nothing is known about it

	holder  atomic.Pointer[metadata.Holder]
	sampled atomic.Int64 // when the database was looked at last, in nanoseconds
	made    sync.Map     // namespaces in which a snapshot was made
	known   sync.Map     // namespaces in which an older snapshot was named

	continued bool // the process was connected before Tank started

	// What follows is guarded by Binder.mu.
	connections int
	binding     metadata.Binding
	// left are holders from before a takeover, for which calls that ran during it may still hold something.
	left     []metadata.Holder
	suspects []metadata.Holder // former holders that the database may have had; nil: all
}

// Holder returns the holder that the process acts for at the moment.
func (s *Session) Holder() metadata.Holder { return *s.holder.Load() }

func (s *Session) setHolder(h metadata.Holder) { s.holder.Store(&h) }

// End is called when a connection has ended.
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
	writes := containerddb.Writes(s.file)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.binding.Seen = time.Now().UTC()
	s.binding.Writes = max(s.binding.Writes, writes)
	defer s.b.changed()
	if err := s.b.db.Update(func(tx *metadata.Tx) error {
		bs, err := metadata.Bindings(tx)
		same := func(r metadata.Binding) bool { return r.ID == s.binding.ID && r.Holder == s.binding.Holder }
		if err != nil || !slices.ContainsFunc(bs, same) {
			return err // another database took its place
		}
		return metadata.PutBinding(tx, s.binding)
	}); err != nil {
		log.L.WithError(err).WithField("holder", s.binding.Holder).
			Warn("the connection of a containerd could not be recorded")
	}
}

// Named is called when the process named a snapshot that its holder has.
func (s *Session) Named(key string) {
	ns, _, ok := metadata.Sequence(key)
	if !ok {
		return
	}
	if _, made := s.made.Load(ns); !made {
		s.known.LoadOrStore(ns, true)
	}
}

// sampleEvery is how often the number of transactions is read from a database that is in use.
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
	writes := containerddb.Writes(s.file)
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
		s.b.changed()
	}
	s.made.Store(ns, true)
	return nil
}

// begin changes the binding for the first snapshot in a namespace, if that is due.
func (s *Session) begin(ctx context.Context, ns string, sequence uint64) (changed bool, err error) {
	if s.binding.ID == direct {
		return false, nil
	}
	// A process that goes on may send a smaller number late: calls at once, of which one is repeated after Tank's
	// restart.
	last := uint64(0)
	if !s.continued {
		if err := s.b.db.ViewPending(func(tx *metadata.Tx) error {
			last = metadata.LastSequence(tx, s.binding.Holder, ns)
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
	if !anew && (s.binding.Recognized || s.binding.First[ns] != 0) {
		return false, nil
	}
	before := s.binding
	err = s.b.db.Update(func(tx *metadata.Tx) error {
		if anew {
			log.G(ctx).WithFields(log.Fields{"namespace": ns, "sequence": sequence, "last": last}).
				Warn("the sequence numbers of a containerd start again: its database was emptied or restored")
			bs, err := metadata.Bindings(tx)
			if err != nil {
				return err
			}
			if err := s.replace(tx, bs, s.binding); err != nil {
				return err
			}
		}
		if !s.binding.Recognized && s.binding.First[ns] == 0 {
			first := maps.Clone(s.binding.First)
			if first == nil {
				first = map[string]uint64{}
			}
			first[ns] = sequence
			s.binding.First = first
		}
		s.binding.Seen = time.Now().UTC()
		return metadata.PutBinding(tx, s.binding)
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

// Claim is called when a snapshot that the process named was not found. It reports whether the process now acts for
// another holder, so that the caller has to repeat the call.
//
// A database has a record of a snapshot either because its holder made it, or because the database was in use elsewhere
// and was moved or restored. The second is the case when the sequence number is smaller than the first one with which
// the database made a snapshot here.
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
	if !ok || s.binding.Recognized {
		return false
	}
	if first := s.binding.First[ns]; first != 0 && sequence >= first {
		return false
	}
	var candidates []former
	if err := s.b.db.ViewPending(func(tx *metadata.Tx) (err error) {
		candidates, err = s.candidates(ctx, tx, key)
		return err
	}); err != nil {
		log.G(ctx).WithError(err).Warn("the holder of the snapshot can't be determined")
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
		Warn("this snapshot belonged to a former containerd, which the caller may not be: see release --to")
	return false
}

// takeOver makes the session act for the holder h, which has the snapshot key, and gives h what the session held so
// far.
func (s *Session) takeOver(ctx context.Context, h metadata.Holder, key string) bool {
	own, next := s.binding.Holder, s.binding
	next.Holder, next.Recognized, next.First, next.Seen = h, true, nil, time.Now().UTC()
	for ns, first := range s.binding.First { // h made the snapshots from this number on after the backup
		if err := s.b.opts.SetAside(h, ns, first); err != nil {
			log.G(ctx).WithError(err).Error("a containerd's database was recognized, but binding it failed")
			return false
		}
	}
	err := s.b.opts.HandOver(own, h, func(tx *metadata.Tx) error {
		if err := s.b.forget(tx, h); err != nil {
			return err
		}
		return metadata.PutBinding(tx, next)
	})
	if err != nil {
		log.G(ctx).WithError(err).Error("a containerd's database was recognized, but binding it failed")
		return false
	}
	s.binding, s.suspects = next, nil
	s.b.changed()
	s.Named(key)
	s.left = append(s.left, own)
	s.setHolder(h)
	log.G(ctx).WithFields(log.Fields{"holder": h, "database": s.file.Path}).
		Info("a containerd was recognized by a snapshot that it named")
	return true
}

// gather gives to the session's holder the things that calls made for its earlier holders during a takeover. It reports
// whether the snapshot key is among them.
func (s *Session) gather(ctx context.Context, key string) bool {
	h := s.binding.Holder
	for _, old := range s.left {
		found := false
		if err := s.b.db.ViewPending(func(tx *metadata.Tx) error {
			found = tx.Holds(old, metadata.SnapshotNode(old.SnapshotKey(key)))
			return nil
		}); err != nil || !found {
			continue
		}
		if err := s.b.opts.HandOver(old, h, func(*metadata.Tx) error { return nil }); err != nil {
			log.G(ctx).WithError(err).Warn("things made during a takeover stay with the former holder")
			continue
		}
		return true
	}
	return false
}

// Left is called when a call that acted for the holder old has ended. What the call did after a takeover is given to
// the session's present holder.
func (s *Session) Left(ctx context.Context, old metadata.Holder) {
	if old == s.Holder() {
		return
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if old == s.binding.Holder || !slices.Contains(s.left, old) {
		return // the session acts for old again, or old was released
	}
	if err := s.b.opts.HandOver(old, s.binding.Holder, func(*metadata.Tx) error { return nil }); err != nil {
		log.G(ctx).WithError(err).Warn("things made during a takeover stay with the former holder")
	}
}
