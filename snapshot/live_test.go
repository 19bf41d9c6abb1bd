package snapshot_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestLiveContainerBelow commits a snapshot while its container goes on writing to it: it swaps a directory for a
// symbolic link to a directory of the host, and a file for a link, a pipe and a device, as fast as it can. Layers above
// it are planned and made meanwhile, and containers in directory mode copied. Nothing of the host's file lands in them.
func TestLiveContainerBelow(t *testing.T) {
	requireRoot(t)
	const secret = "a secret of the host"
	host := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(host, "in"), 0o755))
	for _, name := range []string{"f", "in/g", "swapped"} {
		must(t, os.WriteFile(filepath.Join(host, name), []byte(secret), 0o600))
	}
	w := openDirectory(t, memoryDir(t), memory{})
	sn := w.For(holder)
	mounts, err := sn.Prepare(ctx, "ns/1/box", "")
	must(t, err)
	upper := bound(t, mounts, "rw")
	for _, dir := range []string{"d/in", "other"} {
		must(t, os.MkdirAll(filepath.Join(upper, dir), 0o755))
	}
	for _, name := range []string{"d/f", "d/in/g", "swapped"} {
		must(t, os.WriteFile(filepath.Join(upper, name), []byte("the container's"), 0o644))
	}
	must(t, os.Symlink(host, filepath.Join(upper, "d.host")))
	must(t, os.Symlink(filepath.Join(host, "swapped"), filepath.Join(upper, "swapped.link")))
	must(t, unix.Mkfifo(filepath.Join(upper, "swapped.fifo"), 0o644))
	base := digest.FromString("base").String()
	must(t, sn.Commit(ctx, base, "ns/1/box"))

	stop := swap(t, upper,
		[2]string{"d", "d.host"}, [2]string{"swapped", "swapped.link"}, [2]string{"swapped", "swapped.fifo"})
	defer stop()
	made, failed := 0, 0
	for end := time.Now().Add(time.Second); time.Now().Before(end) && made+failed < 200; {
		n := made + failed
		l := w.blobs.add(t, Tar(t, F("new", fmt.Sprint(n)), H("l", "d/f"), H("k", "d/in/g"), H("s", "swapped")))
		if err := extractAbove(sn, w.Store, base, l, n); err != nil {
			failed++ // the link led to nothing, or what it led to was replaced
		} else {
			made++
		}
		if _, err := sn.Prepare(ctx, fmt.Sprintf("copy-%d", n), base); err == nil {
			made++
		}
		_, _ = sn.Usage(ctx, fmt.Sprintf("copy-%d", n))
	}
	stop()
	t.Logf("%d made, %d failed", made, failed)
	if made == 0 {
		t.Error("nothing was made")
	}
	must(t, filepath.WalkDir(w.root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it was waiting to be deleted
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if strings.Contains(string(b), secret) {
			t.Errorf("%s: has the host's file", path)
		}
		return err
	}))
}

// swap exchanges names in a directory, in pairs, until the function that it returns is called; after that every first
// name is what it was.
func swap(t *testing.T, dir string, pairs ...[2]string) (stop func()) {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	var swappers sync.WaitGroup
	ended := make(chan struct{})
	swappers.Go(func() {
		defer d.Close()
		for {
			for _, p := range pairs {
				for range 2 {
					if err := unix.Renameat2(int(d.Fd()), p[0], int(d.Fd()), p[1], unix.RENAME_EXCHANGE); err != nil {
						t.Error(err)
						return
					}
				}
			}
			select {
			case <-ended:
				return
			default:
			}
		}
	})
	return sync.OnceFunc(func() {
		close(ended)
		swappers.Wait()
	})
}

// extractAbove extracts a layer above a committed snapshot, makes what it needs there, and removes the snapshot again.
func extractAbove(sn *snapshot.Snapshotter, s *snapshot.Store, parent string, l layer.Pair, n int) error {
	chain := identity.ChainID([]digest.Digest{digest.Digest(parent), l.DiffID}).String()
	key := fmt.Sprintf("ns/%d/extract-x %s", n, chain)
	labels := map[string]string{snapshots.LabelSnapshotRef: chain}
	mounts, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
	if err != nil {
		return err
	}
	if _, err := s.Apply(ctx, l.Blob, mounts); err != nil {
		return err
	}
	if err := sn.Commit(ctx, chain, key); err != nil {
		return err
	}
	_, err = sn.View(ctx, chain+" view", chain)
	return err
}
