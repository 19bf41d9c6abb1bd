package durable

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// TestSyncWaitsForUnpacks: a round does not sync while layers are being unpacked, unless a caller waits for it.
func TestSyncWaitsForUnpacks(t *testing.T) {
	db, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	dir, err := rootdir.Open(t.TempDir(), db, &rootdir.Options{Pools: []string{rootdir.Layers, rootdir.Rootfs}})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var busy atomic.Bool
	busy.Store(true)
	s := New(dir, db, &Options{Delay: time.Millisecond, Busy: busy.Load})
	defer s.Close()
	rounds := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.rounds
	}
	provisional := func(key string) {
		s.Add(metadata.LayerNode(key), "1")
		s.Begin()
	}
	provisional("a")
	time.Sleep(100 * time.Millisecond) // many times the delay
	if rounds() != 0 {
		t.Error("synced while a layer is being unpacked")
	}
	if err := s.Sync(t.Context()); err != nil || rounds() == 0 {
		t.Errorf("Sync: %d rounds and error %v; want at least one round and no error", rounds(), err)
	}
	provisional("b")
	busy.Store(false)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		left := len(s.pending)
		s.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no sync within a minute after the unpacks ended")
		}
	}
}
