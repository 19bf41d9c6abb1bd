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

// TestLiveContainerBelow commits a snapshot whose container goes on writing to it. As fast as possible, the container
// exchanges a directory with a symlink to a directory of the host, and a file with a symlink and with a fifo. Meanwhile
// layers are unpacked above the snapshot and containers in directory mode are copied from it. None of them may contain
// data of the host's files.
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
			failed++ // the target of a hard link was missing or had been replaced
		} else {
			made++
		}
		if _, err := sn.Prepare(ctx, fmt.Sprintf("copy-%d", n), base); err == nil {
			made++
		}
		_, _ = sn.Usage(ctx, fmt.Sprintf("copy-%d", n))
	}
	stop()
	t.Logf("%d snapshots made, %d failed", made, failed)
	if made == 0 {
		t.Error("no snapshot was made")
	}
	must(t, filepath.WalkDir(w.root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
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
			t.Errorf("%s contains a file of the host", path)
		}
		return err
	}))
}

// swap repeatedly exchanges the two names of each pair in a directory until stop is called. After stop, every name
// stands for its original file.
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

// extractAbove extracts and commits a layer above a committed snapshot, with the calls of containerd, and makes a
// view of the result.
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
