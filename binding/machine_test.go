package binding_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/metadata"
)

// machine is what a Binder sees of a machine: processes, and the files of their databases.
type machine struct {
	t         *testing.T
	db        *metadata.DB
	b         *binding.Binder
	processes map[int]containerddb.File // of those that run, by PID
	hidden    map[int]bool              // cannot be looked at
	text      map[uint64]string         // of the files, as far as it matters
	next      int
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	db, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	m := &machine{t: t, db: db, processes: map[int]containerddb.File{}, hidden: map[int]bool{},
		text: map[uint64]string{}}
	m.restart()
	t.Cleanup(func() {
		m.b.Close()
		must(t, db.Close())
	})
	return m
}

// restart starts another Tank on the root.
func (m *machine) restart() {
	if m.b != nil {
		m.b.Close()
	}
	m.b = binding.New(m.db, &binding.Options{
		HandOver: func(from, to metadata.Holder, also func(*metadata.Tx) error) error {
			return m.db.Update(func(tx *metadata.Tx) error {
				if _, err := metadata.HandOver(tx, from, to); err != nil {
					return err
				}
				return also(tx)
			})
		},
		SetAside: func(h metadata.Holder, ns string, sequence uint64) error {
			return m.db.Update(func(tx *metadata.Tx) error {
				_, err := metadata.SetAside(tx, h, ns, sequence)
				return err
			})
		},
		Database: func(p peer.Process, _ []string) (containerddb.File, error) {
			switch f := m.processes[p.PID]; {
			case m.hidden[p.PID]:
				return containerddb.File{}, containerddb.ErrHidden
			case f.Inode == 0:
				return containerddb.File{}, containerddb.ErrNone
			default:
				return f, nil
			}
		},
		Mentions: func(_ context.Context, f containerddb.File, keys []string) (map[string]bool, error) {
			text, ok := m.text[f.Inode]
			if !ok {
				return nil, errors.New("no such file")
			}
			found := map[string]bool{}
			for _, k := range keys {
				found[k] = strings.Contains(text, k)
			}
			return found, nil
		},
		Alive: func(p peer.Process) (bool, bool) {
			_, runs := m.processes[p.PID]
			return runs, true
		},
		Busy: func(f containerddb.File) bool {
			for _, open := range m.processes {
				if open.Same(f) {
					return true
				}
			}
			return false
		},
	})
}

// client is a containerd, or another program.
type client struct {
	m   *machine
	pid int
	s   *binding.Session
}

// start starts a process that has the file open, and connects it.
func (m *machine) start(f containerddb.File, hidden bool) *client {
	m.t.Helper()
	m.next++
	m.processes[m.next], m.hidden[m.next] = f, hidden
	c := &client{m: m, pid: m.next}
	c.connect()
	return c
}

func (c *client) connect() {
	c.m.t.Helper()
	s, err := c.m.b.Session(context.Background(), peer.Process{PID: c.pid, Started: 1})
	must(c.m.t, err)
	c.s = s
}

func (c *client) stop() {
	delete(c.m.processes, c.pid)
	c.s.End()
	c.m.b.Close() // waits for what is recorded
}

// make makes a snapshot as plugin does, and returns whether that was possible.
func (c *client) make(key, parent string) error {
	must(c.m.t, c.s.Making(context.Background(), key))
	try := func() error {
		h := c.s.Holder()
		return c.m.db.Update(func(tx *metadata.Tx) error {
			p := h.SnapshotKey(parent)
			if p != "" && !tx.Holds(h, metadata.SnapshotNode(p)) {
				return errdefs.ErrNotFound
			}
			k := h.SnapshotKey(key)
			if _, err := tx.Snapshot(k); err == nil {
				return errdefs.ErrAlreadyExists
			}
			kind := metadata.Active
			if strings.Contains(k, "sha256:") {
				kind = metadata.Committed
			}
			err := tx.PutSnapshot(metadata.Snapshot{Key: k, Kind: kind, Parent: p, Created: time.Now()})
			return errors.Join(err, tx.Hold(h, metadata.SnapshotNode(k)))
		})
	}
	err := try()
	if errdefs.IsNotFound(err) && c.s.Claim(context.Background(), parent) {
		err = try()
	}
	return err
}

// has reports whether the client finds a snapshot.
func (c *client) has(key string) bool {
	if slices.Contains(c.list(), key) {
		c.s.Named(key)
		return true
	}
	return c.s.Claim(context.Background(), key) && slices.Contains(c.list(), key)
}

// list is what the client's collector sees.
func (c *client) list() (keys []string) {
	h := c.s.Holder()
	must(c.m.t, c.m.db.View(func(tx *metadata.Tx) error {
		for _, k := range tx.Held(h, metadata.KindSnapshot, "", -1) {
			keys = append(keys, h.SnapshotName(k))
		}
		return nil
	}))
	return keys
}

// collect removes everything that the client sees and does not keep.
func (c *client) collect(keep ...string) {
	h := c.s.Holder()
	must(c.m.t, c.m.db.Update(func(tx *metadata.Tx) error {
		keys, err := tx.HeldSnapshots(h)
		for _, k := range keys {
			if !slices.Contains(keep, h.SnapshotName(k)) {
				err = errors.Join(err, tx.Release(h, metadata.SnapshotNode(k)))
			}
		}
		return err
	}))
}

var born = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// file is the file of a database; n tells files apart.
func file(n uint64, writes uint64) containerddb.File {
	path := fmt.Sprintf("/%d/meta.db", n)
	return containerddb.File{Path: path, Inode: n, Born: born.Add(time.Duration(n) * time.Hour), Writes: writes}
}
