package binding_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/metadata"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	layer     = "default/2/sha256:layer"
	container = "default/3/container"
)

// fill does what containerd does when it pulls an image and runs a container.
func (c *client) fill() {
	c.m.t.Helper()
	must(c.m.t, c.make(layer, ""))
	must(c.m.t, c.make(container, layer))
}

// TestScenarios: what a node's containerds see, whatever becomes of their databases.
func TestScenarios(t *testing.T) {
	whole := []string{layer, container}
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, m *machine, first *client) // first has filled its database, file(1, 10)
	}{
		{"restarted", func(t *testing.T, m *machine, first *client) {
			first.stop()
			expect(t, m.start(file(1, 10), false), whole...)
		}},
		{"Tank restarted", func(t *testing.T, m *machine, first *client) {
			m.restart()
			first.connect()
			expect(t, first, whole...)
		}},
		{"two at once", func(t *testing.T, m *machine, first *client) {
			second := m.start(file(2, 1), false)
			expect(t, second)
			second.fill() // the same keys
			expect(t, second, whole...)
			second.collect()
			expect(t, second)
			expect(t, first, whole...)
		}},
		{"an empty root in between", func(t *testing.T, m *machine, first *client) {
			first.stop()
			second := m.start(file(2, 1), false)
			second.fill()
			second.collect()
			second.stop()
			expect(t, m.start(file(1, 10), false), whole...)
		}},
		{"moved", func(t *testing.T, m *machine, first *client) {
			first.stop()
			moved := m.start(file(2, 10), false)
			moved.collect()
			expectFinds(t, moved, whole...)
			expect(t, moved, whole...)
			moved.stop()
			expect(t, m.start(file(2, 11), false), whole...)
		}},
		{"moved, and a container is made before anything is looked at", func(t *testing.T, m *machine, first *client) {
			first.stop()
			moved := m.start(file(2, 10), false)
			must(t, moved.make("default/7/another", ""))
			must(t, moved.make("default/8/second", layer))
			expect(t, moved, layer, container, "default/7/another", "default/8/second")
		}},
		{"a copy while it runs", func(t *testing.T, m *machine, first *client) {
			copied := m.start(file(2, 10), false)
			if copied.has(container) {
				t.Error("the copy has the container")
			}
			copied.collect()
			expect(t, first, whole...)
		}},
		{"a copy with the same inode number and birth time", func(t *testing.T, m *machine, first *client) {
			copied := m.start(file(1, 10), false)
			expect(t, copied)
			copied.collect()
			expect(t, first, whole...)
		}},
		{"a copy while it runs idle, after a restart of Tank", func(t *testing.T, m *machine, first *client) {
			m.restart()
			copied := m.start(file(2, 10), false)
			if copied.has(container) {
				t.Error("the copy has the container")
			}
		}},
		{"restored in its place", func(t *testing.T, m *machine, first *client) {
			first.stop()
			restored := m.start(file(1, 5), false)
			restored.collect()
			expectFinds(t, restored, whole...)
		}},
		{"restored in its place, unnoticed, and it makes what it forgot",
			func(t *testing.T, m *machine, first *client) {
				first.stop()
				restored := m.start(file(1, 10), false)
				must(t, restored.make(container, "")) // it was made after the backup
				if !restored.has(layer) || !restored.has(container) {
					t.Errorf("it has %q", restored.list())
				}
			}},
		{"restored in its place, used, and it makes again what it forgot",
			func(t *testing.T, m *machine, first *client) {
				must(t, first.make("default/5/sha256:later", layer)) // after the backup
				must(t, first.make("default/6/forgotten", "default/5/sha256:later"))
				first.stop()
				restored := m.start(file(1, 5), false)
				expectFinds(t, restored, whole...)
				must(t, restored.make("default/4/extract", layer))
				must(t, restored.make("default/5/sha256:later", layer))
				must(t, restored.make("default/6/another", "default/5/sha256:later"))
				restored.collect(layer, container, "default/4/extract", "default/5/sha256:later", "default/6/another")
				expect(t, restored, layer, container, "default/4/extract", "default/5/sha256:later",
					"default/6/another")
			}},
		{"restored in its place, and it makes again what it forgot", func(t *testing.T, m *machine, first *client) {
			must(t, first.make("default/5/sha256:later", layer)) // after the backup
			must(t, first.make("default/6/sha256:top", "default/5/sha256:later"))
			first.stop()
			restored := m.start(file(1, 5), false)
			must(t, restored.make("default/4/extract", ""))
			must(t, restored.make("default/5/sha256:later", layer))
			must(t, restored.make("default/6/sha256:top", "default/5/sha256:later"))
			restored.collect(layer, container, "default/4/extract", "default/5/sha256:later", "default/6/sha256:top")
			expect(t, restored, layer, container, "default/4/extract", "default/5/sha256:later", "default/6/sha256:top")
		}},
		{"a call that was repeated after Tank's restart comes late", func(t *testing.T, m *machine, first *client) {
			must(t, first.make("default/9/early", layer))
			m.restart()
			first.connect()
			must(t, first.make("default/8/late", layer))
			expect(t, first, layer, container, "default/8/late", "default/9/early")
			if first.s.Holder() != metadata.Containerd {
				t.Errorf("it acts for %s", first.s.Holder())
			}
		}},
		{"emptied in its place", func(t *testing.T, m *machine, first *client) {
			first.stop()
			emptied := m.start(file(1, 4), false)
			emptied.fill()
			emptied.collect()
			emptied.stop()
			expectFinds(t, m.start(file(7, 10), false), whole...) // from a backup
		}},
		{"emptied in its place, unnoticed", func(t *testing.T, m *machine, first *client) {
			first.stop()
			emptied := m.start(file(1, 10), false)
			must(t, emptied.make("default/1/extract", ""))
			emptied.collect()
			emptied.stop()
			expectFinds(t, m.start(file(7, 10), false), whole...)
		}},
		{"wiped", func(t *testing.T, m *machine, first *client) {
			first.stop()
			m.start(file(2, 1), false).fill()
			callers, err := m.b.Callers()
			must(t, err)
			c := callers[metadata.Containerd]
			if c.Connected || c.Database != "/1/meta.db" || time.Since(c.Seen) > time.Minute {
				t.Errorf("the former one: %+v", c)
			}
			must(t, m.b.Free(metadata.Containerd))
		}},
		{"a fresh one looks for what it lost, which another has", func(t *testing.T, m *machine, first *client) {
			first.stop()
			fresh := m.start(file(2, 1), false)
			must(t, fresh.make("default/1/extract", ""))
			if fresh.has(container) {
				t.Error("it has a container of another")
			}
		}},
		{"hidden, restarted", func(t *testing.T, m *machine, first *client) {
			first.stop()
			hidden := m.start(containerddb.File{}, true)
			hidden.collect()
			expectFinds(t, hidden, whole...)
			must(t, hidden.make("default/9/more", layer))
			hidden.stop()
			hidden = m.start(containerddb.File{}, true)
			must(t, hidden.make("default/10/early", ""))
			expectFinds(t, hidden, layer, container, "default/9/more", "default/10/early")
		}},
		{"hidden, beside it", func(t *testing.T, m *machine, first *client) {
			hidden := m.start(containerddb.File{}, true)
			hidden.fill()
			hidden.collect()
			expect(t, first, whole...)
		}},
		{"another program", func(t *testing.T, m *machine, first *client) {
			first.stop()
			program := m.start(containerddb.File{}, false)
			if program.has(layer) {
				t.Error("it has a snapshot of containerd's")
			}
			program.fill()
			program.stop()
			expect(t, m.start(containerddb.File{}, false), whole...)
			expect(t, m.start(file(1, 10), false), whole...)
		}},
		{"two former ones had the layer", func(t *testing.T, m *machine, first *client) {
			first.stop()
			second := m.start(file(2, 1), false)
			must(t, second.make(layer, ""))
			second.stop()
			moved := m.start(file(3, 20), false)
			if moved.has(layer) {
				t.Error("it took one of two")
			}
			expectFinds(t, moved, whole[1], whole[0]) // only one had the container
		}},
		{"two former ones had the layer; it mentions the container of one",
			func(t *testing.T, m *machine, first *client) {
				first.stop()
				second := m.start(file(2, 1), false)
				must(t, second.make(layer, ""))
				must(t, second.make("default/4/other", layer))
				second.stop()
				m.text[3] = layer + " " + container
				expectFinds(t, m.start(file(3, 20), false), whole...)
			}},
		{"two former ones had the layer; it mentions containers of both",
			func(t *testing.T, m *machine, first *client) {
				first.stop()
				second := m.start(file(2, 1), false)
				must(t, second.make(layer, ""))
				must(t, second.make("default/4/other", layer))
				second.stop()
				m.text[3] = layer + " " + container + " default/4/other"
				if m.start(file(3, 20), false).has(layer) {
					t.Error("it took one of two")
				}
			}},
		{"calls that run during the takeover", func(t *testing.T, m *machine, first *client) {
			first.stop()
			moved := m.start(file(2, 10), false)
			before := moved.s.Holder()
			expectFinds(t, moved, whole...)
			for _, key := range []string{"default/7/late", "default/8/later"} {
				must(t, m.db.Update(func(tx *metadata.Tx) error {
					k := before.SnapshotKey(key)
					err := tx.PutSnapshot(metadata.Snapshot{Key: k, Kind: metadata.Active})
					return errors.Join(err, tx.Hold(before, metadata.SnapshotNode(k)))
				}))
				if key == "default/8/later" {
					moved.s.Left(context.Background(), before)
				}
				expectFinds(t, moved, key)
			}
			expect(t, moved, layer, container, "default/7/late", "default/8/later")
		}},
		{"another database, which had the same image first", func(t *testing.T, m *machine, first *client) {
			first.stop()
			m.text[2] = layer + " default/3/of-its-own"
			other := m.start(file(2, 40), false)
			if other.has(layer) {
				t.Error("it took what is not its own")
			}
			other.collect()
			other.stop()
			expect(t, m.start(file(1, 10), false), whole...)
		}},
		{"restored in another place, from before the container", func(t *testing.T, m *machine, first *client) {
			first.collect(layer)
			first.stop()
			m.text[2] = layer
			expectFinds(t, m.start(file(2, 5), false), layer)
		}},
		{"released, and back while another has the like", func(t *testing.T, m *machine, first *client) {
			first.stop()
			second := m.start(file(2, 1), false)
			must(t, second.make("default/1/old", ""))
			second.stop()
			must(t, m.db.Update(func(tx *metadata.Tx) error { return tx.ReleaseAll(metadata.Containerd) }))
			must(t, m.b.Released(metadata.Containerd))
			if m.start(file(1, 10), false).has("default/1/old") {
				t.Error("it took the other's")
			}
			if h := m.start(file(3, 1), false).s.Holder(); h != metadata.Containerd {
				t.Errorf("a new one acts for %s", h)
			}
		}},
		{"handed over by hand", func(t *testing.T, m *machine, first *client) {
			second := m.start(file(2, 1), false)
			must(t, second.make("default/1/extract", ""))
			if err := m.b.HandOver(metadata.Containerd, second.s.Holder()); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("while it runs: %v", err)
			}
			first.stop()
			must(t, m.b.HandOver(metadata.Containerd, second.s.Holder()))
			expect(t, second, "default/1/extract", layer, container)
			if err := m.b.HandOver("image/x", second.s.Holder()); !errdefs.IsInvalidArgument(err) {
				t.Errorf("an image's: %v", err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			first := m.start(file(1, 1), false)
			if h := first.s.Holder(); h != metadata.Containerd {
				t.Fatalf("the first one acts for %s", h)
			}
			m.processes[first.pid] = file(1, 10)
			first.fill()
			first.s.End()
			m.b.Close()
			m.restart() // which records how far the database was
			first.connect()
			tc.run(t, m, first)
			var faults []string
			must(t, m.db.Check(func(f metadata.Fault) { faults = append(faults, f.Error()) }))
			if len(faults) > 0 {
				t.Error(strings.Join(faults, "\n"))
			}
		})
	}
}

// expect checks what a client's collector would see.
func expect(t *testing.T, c *client, want ...string) {
	t.Helper()
	if got := c.list(); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("%s sees %q, want %q", c.s.Holder(), got, want)
	}
}

func expectFinds(t *testing.T, c *client, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if !c.has(k) {
			t.Errorf("%s: %s is not found; it sees %q", c.s.Holder(), k, c.list())
		}
	}
}

// TestUpgrade: a root of a Tank that knew no bindings belongs to the database that was there when its snapshots were
// made.
func TestUpgrade(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		name string
		born time.Time
		want metadata.Holder // "": another one
	}{
		{"older than the snapshots", old.Add(-time.Hour), metadata.Containerd},
		{"born after them", old.Add(time.Hour), ""},
		{"of an unknown age", time.Time{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			must(t, m.db.Update(func(tx *metadata.Tx) error {
				err := tx.PutSnapshot(metadata.Snapshot{Key: container, Kind: metadata.Active, Created: old})
				return errors.Join(err, tx.Hold(metadata.Containerd, metadata.SnapshotNode(container)))
			}))
			c := m.start(containerddb.File{Path: "/meta.db", Inode: 1, Born: tc.born, Writes: 7}, false)
			if h := c.s.Holder(); (h == metadata.Containerd) != (tc.want == metadata.Containerd) {
				t.Errorf("it acts for %s", h)
			}
			c.collect(container)
			expectFinds(t, c, container) // a moved database proves itself
			if c.s.Holder() != metadata.Containerd {
				t.Errorf("it acts for %s", c.s.Holder())
			}
		})
	}
}
