// Package binding decides which holder the process at the other end of a connection acts for.
//
// It owns no file; its records are the bindings in metadata.db.
//
// Its invariant: a database that Tank does not know gets a holder of its own, so it can neither see nor remove what
// others hold. It takes over the holder of a database that is not in use only by naming a snapshot that no other
// database can know.
//
// The surprising rule: a containerd is the file of its database, not its process, socket or path. An empty database in
// the same place is another containerd; the same file under another process is the same one. docs/adr/0019 gives the
// reasons.
package binding

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/metadata"
)

// Options of New.
type Options struct {
	// HandOver gives all that the holder from holds to the holder to, in the transaction in which also runs.
	HandOver func(from, to metadata.Holder, also func(*metadata.Tx) error) error
	// SetAside gives other keys to the snapshots of h in a namespace with this sequence number or a larger one.
	SetAside func(h metadata.Holder, namespace string, sequence uint64) error
	// Changed is called, in a goroutine of its own, after bindings have changed. nil: nobody is told.
	Changed func()
	// Database finds the containerd database that a process has open. nil means containerddb.Find.
	Database func(p peer.Process, places []string) (containerddb.File, error)
	// Alive reports whether a process runs. nil means peer.Process.Alive.
	Alive func(p peer.Process) (alive, known bool)
	// Busy reports whether a database is open in a process. nil means containerddb.Busy.
	Busy func(containerddb.File) bool
	// Mentions lists those of the keys that are in the file of a database. nil means containerddb.Mentions.
	Mentions func(ctx context.Context, f containerddb.File, keys []string) (map[string]bool, error)
}

// Binder decides for which holder each caller of one root acts.
type Binder struct {
	db   *metadata.DB
	opts Options
	wg   sync.WaitGroup // records of sessions that ended, and reports of changes

	reporting atomic.Bool // a goroutine is about to call Options.Changed

	mu       sync.Mutex // guards the fields below, and those of Session that name it
	sessions map[process]*Session
}

// process identifies a caller as long as the system runs. Processes about which nothing is known are distinguished only
// by their user.
type process struct {
	pid     int
	started uint64
	handle  uint64
	uid     uint32
}

func processOf(p peer.Process) process {
	switch {
	case p.PID != 0:
		return process{pid: p.PID, started: p.Started}
	case p.Handle != 0:
		return process{handle: p.Handle}
	}
	return process{uid: p.UID}
}

// New makes a binder of the root whose records are in db.
func New(db *metadata.DB, opts *Options) *Binder {
	b := &Binder{db: db, opts: *opts, sessions: map[process]*Session{}}
	if b.opts.Database == nil {
		b.opts.Database = containerddb.Find
	}
	if b.opts.Alive == nil {
		b.opts.Alive = peer.Process.Alive
	}
	if b.opts.Busy == nil {
		b.opts.Busy = containerddb.Busy
	}
	if b.opts.Mentions == nil {
		b.opts.Mentions = containerddb.Mentions
	}
	return b
}

// Close waits until the sessions that ended are recorded, and until changes are reported.
func (b *Binder) Close() { b.wg.Wait() }

// Session returns the session of the process at the other end of a connection. Each call is ended by one of End. Errors
// are of class errdefs.ErrUnavailable.
func (b *Binder) Session(ctx context.Context, p peer.Process) (*Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgetDead()
	id := processOf(p)
	s := b.sessions[id]
	if s != nil && s.binding.ID != direct { // a caller without a database may have one by now
		s.connections++
		return s, nil
	}
	f, err := b.opts.Database(p, b.places())
	if s != nil && errors.Is(err, containerddb.ErrNone) {
		s.connections++
		return s, nil
	}
	next := &Session{b: b, process: p, file: f, connections: 1}
	if err := b.bind(next, err); err != nil {
		return nil, fmt.Errorf("caller %d: bind: %w: %w", p.PID, err, errdefs.ErrUnavailable)
	}
	if next.binding.ID != direct {
		log.G(ctx).WithFields(log.Fields{"pid": p.PID, "holder": next.Holder(), "database": f.Path}).
			Info("a containerd is connected")
	}
	b.sessions[id] = next
	return next, nil
}

// forgetDead forgets the sessions whose process has ended. b.mu is held.
func (b *Binder) forgetDead() {
	for id, s := range b.sessions {
		if !b.live(s) {
			delete(b.sessions, id)
		}
	}
}

// live reports whether the process of a session may call again.
func (b *Binder) live(s *Session) bool {
	alive, known := b.opts.Alive(s.process)
	return known && alive || !known && s.connections > 0
}

// places are the paths at which the database of a containerd was seen.
func (b *Binder) places() (paths []string) {
	_ = b.db.ViewPending(func(tx *metadata.Tx) error { // after an error the usual places are searched
		bs, err := metadata.Bindings(tx)
		for _, r := range bs {
			if r.Path != "" && !slices.Contains(paths, r.Path) {
				paths = append(paths, r.Path)
			}
		}
		return err
	})
	return paths
}

// direct is the ID of the binding of all callers that have no containerd database open.
const direct = "direct"

// newID returns the ID of a new binding. It is not a number, so the name of a holder never looks like the key of
// another holder's snapshot.
func newID() string {
	return fmt.Sprintf("d%08x", rand.Uint32())
}

// bind chooses the holder of a new session. looked is the error of the search for its process's database.
func (b *Binder) bind(s *Session, looked error) error {
	known := false
	change := func(tx *metadata.Tx) error {
		known = false
		bs, err := metadata.Bindings(tx)
		if err != nil {
			return err
		}
		switch {
		case errors.Is(looked, containerddb.ErrNone):
			known, err = s.bindDirect(tx, bs)
		case looked != nil || s.file.Born.IsZero():
			err = s.bindNew(tx, bs)
		default:
			known, err = s.bindFile(tx, bs)
		}
		if err != nil {
			return err
		}
		s.binding.Seen, s.binding.Process = time.Now().UTC(), nameOf(s.process)
		return metadata.PutBinding(tx, s.binding)
	}
	err := b.db.Update(change)
	if err != nil && known {
		log.L.WithError(err).WithField("holder", s.binding.Holder).
			Warn("the connection of a containerd could not be recorded")
		err = nil // on a full disk a containerd still gets what it holds
	}
	if err == nil {
		s.setHolder(s.binding.Holder)
		b.changed()
	}
	return err
}

// changed reports that bindings have changed, unless a goroutine that does so has not begun yet.
func (b *Binder) changed() {
	if b.opts.Changed == nil || !b.reporting.CompareAndSwap(false, true) {
		return
	}
	b.wg.Go(func() {
		b.reporting.Store(false)
		b.opts.Changed()
	})
}

// bindFile finds the binding of the database's file, or makes one.
func (s *Session) bindFile(tx *metadata.Tx, bs []metadata.Binding) (known bool, err error) {
	for _, r := range bs {
		if !s.file.Same(fileOf(r)) {
			continue
		}
		if s.b.inUse(r, s) {
			// Only one process can have a database open, so this is a copy with the same inode number and birth time.
			log.L.WithField("database", s.file.Path).
				Warn("this database is a copy of one that a running containerd uses: it gets a holder of its own")
			s.file.Inode, s.file.Born = 0, time.Time{}
			return false, s.bindNew(tx, bs)
		}
		if r.Writes > s.file.Writes+1 && s.file.Writes > 0 { // one may be lost in a power cut
			return false, s.replace(tx, bs, r)
		}
		s.continued = r.Process != "" && r.Process == nameOf(s.process)
		r.Path, r.Writes = s.file.Path, max(r.Writes, s.file.Writes)
		s.binding = r
		return true, nil
	}
	return false, s.bindNew(tx, bs)
}

// nameOf identifies a process in a binding; "" when it can't be distinguished from another one.
func nameOf(p peer.Process) string {
	if p.PID == 0 || p.Started == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", p.PID, p.Started)
}

// replace removes the file from a binding after the database was emptied or restored in its place. The old binding
// keeps its holder until a database proves that it knows the holder's snapshots.
func (s *Session) replace(tx *metadata.Tx, bs []metadata.Binding, old metadata.Binding) error {
	log.L.WithFields(log.Fields{"database": s.file.Path, "holder": old.Holder}).
		Warn("the database of a containerd was emptied or restored")
	old.Inode, old.Born = 0, time.Time{}
	if err := metadata.PutBinding(tx, old); err != nil {
		return err
	}
	return s.bindNew(tx, bs)
}

// maxBindings is how many bindings are kept whose holders hold nothing.
const maxBindings = 64

func (s *Session) bindNew(tx *metadata.Tx, bs []metadata.Binding) error {
	if len(bs) > maxBindings {
		for _, r := range bs {
			if !tx.HoldsAny(r.Holder) {
				if err := s.b.forget(tx, r.Holder); err != nil {
					return err
				}
			}
		}
	}
	id := newID()
	taken := func(r metadata.Binding) bool { return r.ID == id }
	for slices.ContainsFunc(bs, taken) || tx.HoldsAny(metadata.ContainerdHolder(id)) {
		id = newID()
	}
	holder, settled, err := s.newHolder(tx, bs, id)
	s.binding = metadata.Binding{
		ID: id, Holder: holder, Recognized: settled,
		Inode: s.file.Inode, Born: s.file.Born, Path: s.file.Path, Writes: s.file.Writes,
	}
	return err
}

func (s *Session) bindDirect(tx *metadata.Tx, bs []metadata.Binding) (known bool, err error) {
	s.file = containerddb.File{}
	if i := slices.IndexFunc(bs, func(r metadata.Binding) bool { return r.ID == direct }); i >= 0 {
		s.binding = bs[i]
		return true, nil
	}
	holder, _, err := s.newHolder(tx, bs, direct)
	s.binding = metadata.Binding{ID: direct, Holder: holder, Recognized: true}
	return false, err
}

// newHolder returns the holder of a caller that is not known: metadata.Containerd if no binding has it, otherwise a new
// one. What a Tank without bindings recorded belongs to a database that is older than those records.
func (s *Session) newHolder(
	tx *metadata.Tx,
	bs []metadata.Binding,
	id string,
) (_ metadata.Holder, settled bool, _ error) {
	if _, bound := metadata.BindingOf(bs, metadata.Containerd); bound {
		return metadata.ContainerdHolder(id), false, nil
	}
	if !tx.HoldsAny(metadata.Containerd) {
		return metadata.Containerd, false, nil
	}
	newest, err := metadata.Newest(tx, metadata.Containerd)
	if err == nil && !s.file.Born.IsZero() && s.file.Born.Before(newest) {
		return metadata.Containerd, true, nil
	}
	return metadata.ContainerdHolder(id), false, err
}

func fileOf(r metadata.Binding) containerddb.File {
	return containerddb.File{Path: r.Path, Inode: r.Inode, Born: r.Born}
}

// inUse reports whether a process other than that of the session except acts for the binding's holder, or has its
// database open and so may begin to.
func (b *Binder) inUse(r metadata.Binding, except *Session) bool {
	f := fileOf(r)
	return b.connected(r.Holder, except) || f.Inode != 0 && (except == nil || !except.file.Same(f)) && b.opts.Busy(f)
}

// connected reports whether a process that has called for the holder h still runs. The session except does not count.
func (b *Binder) connected(h metadata.Holder, except *Session) bool {
	for _, s := range b.sessions {
		if s != except && s.Holder() == h && b.live(s) {
			return true
		}
	}
	return false
}
