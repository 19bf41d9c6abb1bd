package layer

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// TestSyncWaitsForUnpacks: what is provisional is not forced to the disk while other layers of the pull are still being written, unless
// somebody waits for it.
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
	s, err := Open(dir, db, nil, &Options{SyncDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rounds := func() int {
		s.syncer.mu.Lock()
		defer s.syncer.mu.Unlock()
		return s.syncer.rounds
	}
	unpack := &job{done: make(chan struct{})}
	s.unpacks.mu.Lock()
	s.unpacks.jobs[digest.FromString("blob")] = unpack
	s.unpacks.mu.Unlock()
	provisional := func(key string) {
		s.syncer.add(metadata.LayerNode(key), "1")
		s.SyncSoon()
	}
	provisional("a")
	time.Sleep(100 * time.Millisecond) // many times the delay
	if rounds() != 0 {
		t.Error("synced while a layer is being unpacked")
	}
	if err := s.Sync(t.Context()); err != nil || rounds() == 0 {
		t.Errorf("somebody who waits: %d rounds, %v", rounds(), err)
	}
	provisional("b")
	close(unpack.done)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.syncer.mu.Lock()
		left := len(s.syncer.pending)
		s.syncer.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not synced when nothing is unpacked any more")
		}
	}
}
