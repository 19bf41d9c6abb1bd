package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// loopFS makes a file system in a file and mounts it until the test ends.
func loopFS(tb testing.TB, size int64, mkfs ...string) string {
	tb.Helper()
	return loopFSAs(tb, "auto", size, mkfs...)
}

// loopFSAs is like loopFS but mounts the file system with the given type.
func loopFSAs(tb testing.TB, kind string, size int64, mkfs ...string) string {
	tb.Helper()
	image, dir := filepath.Join(tb.TempDir(), "image"), tb.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		tb.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, image), {"mount", "-t", kind, "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				tb.Fatalf("%v: %v\n%s", args, err, out)
			}
			tb.Skipf("%v: %v\n%s", args, err, out)
		}
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

// memoryFS mounts a tmpfs of the given size until the test ends.
func memoryFS(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// taken returns how many bytes of a file system are in use.
func taken(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, unix.Syncfs(int(f.Fd())))
	var st unix.Statfs_t
	must(t, unix.Fstatfs(int(f.Fd()), &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func noise(size int) string {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return string(b)
}

// TestDirectoryClones shows how much space a copy takes: almost none on XFS, where the copy shares
// the extents of the layers, and the full size on ext4.
func TestDirectoryClones(t *testing.T) {
	requireRoot(t)
	const size = 24 << 20
	for _, row := range []struct {
		mkfs   []string
		shared bool
	}{
		{[]string{"mkfs.xfs", "-q", "-m", "reflink=1"}, true},
		{[]string{"mkfs.ext4", "-q"}, false},
	} {
		t.Run(row.mkfs[0], func(t *testing.T) {
			w := openDirectory(t, loopFS(t, 512<<20, row.mkfs...), memory{})
			sn := w.For(metadata.Containerd)
			content := noise(size)
			top, err := extract(ctx, sn, w, []layer.Pair{w.blobs.add(t, Tar(t, F("a", content)))}, false, "ns")
			must(t, err)
			before := taken(t, w.root)
			mounts, err := sn.Prepare(ctx, "key", top)
			must(t, err)
			grown := taken(t, w.root) - before
			if shared := grown < size/8; shared != row.shared || !shared && grown < size {
				t.Errorf("a copy of %d bytes takes %d bytes", size, grown)
			}
			copied := filepath.Join(mounts[0].Source, "a")
			got, err := os.ReadFile(copied)
			must(t, err)
			if string(got) != content {
				t.Error("the copy has other content")
			}
			must(t, os.WriteFile(copied, []byte("mine"), 0o644))
			must(t, w.Check(ctx, func(err metadata.Fault) { t.Error(err) }))
		})
	}
}

// TestDirectoryHoles shows that a copy keeps the holes of a file on file systems without clones.
func TestDirectoryHoles(t *testing.T) {
	requireRoot(t)
	for name, dir := range map[string]string{"ext4": loopFS(t, 64<<20, "mkfs.ext4", "-q"),
		"tmpfs": memoryFS(t, "64m")} {
		t.Run(name, func(t *testing.T) {
			w := openDirectory(t, filepath.Join(dir, "."), memory{})
			sn := w.For(metadata.Containerd)
			mounts, err := sn.Prepare(ctx, "key", "")
			must(t, err)
			f, err := os.Create(filepath.Join(mounts[0].Source, "f"))
			must(t, err)
			const size = 1 << 30
			want := []byte("in the middle of nothing")
			_, err = f.WriteAt(want, size/2)
			must(t, errors.Join(err, f.Truncate(size), f.Close()))
			must(t, sn.Commit(ctx, "name", "key"))
			mounts, err = sn.Prepare(ctx, "child", "name")
			must(t, err)
			f, err = os.Open(filepath.Join(mounts[0].Source, "f"))
			must(t, err)
			defer f.Close()
			got := make([]byte, len(want))
			_, err = f.ReadAt(got, size/2)
			must(t, err)
			if info, err := f.Stat(); err != nil || info.Size() != size || !bytes.Equal(got, want) {
				t.Errorf("%v %v, %q", info, err, got)
			}
		})
	}
}

// TestDirectoryFull shows that a copy that does not fit on the disk leaves nothing behind.
func TestDirectoryFull(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, memoryFS(t, "48m"), memory{})
	sn := w.For(metadata.Containerd)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, F("a", noise(8<<20)))), w.blobs.add(t, Tar(t, F("b", noise(20<<20))))}
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	before := taken(t, w.root)
	if _, err := sn.Prepare(ctx, "key", top); !errdefs.IsResourceExhausted(err) {
		t.Fatal(err)
	}
	w.nothingLeft(t)
	if now := taken(t, w.root); now > before+1<<20 {
		t.Errorf("%d bytes in use, before %d", now, before)
	}
	if _, err := sn.Stat(ctx, "key"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	_, err = sn.Prepare(ctx, "key", "ns/"+layers[0].DiffID.String())
	must(t, err)
}

// nothingLeft sweeps the root and checks that no unowned or staged directory is left.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	stats, err := w.Sweep(ctx)
	must(t, err)
	if stats.Snapshots > 0 {
		t.Errorf("%d directories below snapshots/ without a record", stats.Snapshots)
	}
	if left := staged(w.root); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

// staged lists the paths of a root that are being built or deleted.
func staged(root string) (all []string) {
	for _, pattern := range []string{"layers/.*", "snapshots/.*", "rootfs/.*", "rootfs/*/.*", "staging/*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		all = append(all, found...)
	}
	return all
}

// many adds a layer of 3,000 small files.
func many(t *testing.T, w *world) layer.Pair {
	items := []Item{D("d")}
	for i := range 3000 {
		items = append(items, F(fmt.Sprintf("d/%d/%d", i%40, i), "x"))
	}
	return w.blobs.add(t, Tar(t, items...))
}

// copying waits until a copy has begun. It reports whether one began within a minute, before ctx
// ended.
func copying(ctx context.Context, root string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(100 * time.Microsecond) {
		if found, err := filepath.Glob(filepath.Join(root, "snapshots", ".snapshot-*", "fs", "d", "*")); err == nil &&
			len(found) > 1 {
			return true
		}
	}
	return false
}

// TestDirectoryCancel shows that a copy stops when its context is canceled and leaves nothing
// behind.
func TestDirectoryCancel(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, t.TempDir(), memory{})
	sn := w.For(metadata.Containerd)
	top, err := extract(ctx, sn, w, []layer.Pair{many(t, w)}, false, "ns")
	must(t, err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := make(chan bool, 1)
	go func() {
		begun <- copying(context.Background(), w.root)
		cancel()
	}()
	if _, err := sn.Prepare(ctx, "key", top); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !<-begun {
		t.Error("no copy began")
	}
	if _, err := sn.Stat(context.Background(), "key"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	w.nothingLeft(t)
}

// TestDirectoryKill kills a process during a copy. The next process finds only garbage under a
// staged name.
func TestDirectoryKill(t *testing.T) {
	requireRoot(t)
	root := t.TempDir()
	w := openDirectory(t, root, memory{})
	one := many(t, w)
	_, err := extract(ctx, w.For(holder), w, []layer.Pair{one}, false, "ns")
	must(t, err)
	must(t, w.close())
	cmd := again(t, killChild, root, "^TestDirectoryKillChild$")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	begun := copying(ctx, root)
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	if !begun {
		t.Fatalf("no copy began: %s", out.String())
	}
	left, err := filepath.Glob(filepath.Join(root, "snapshots", ".snapshot-*"))
	must(t, err)
	if len(left) == 0 {
		t.Fatal("the copy ended before the kill")
	}
	w = openDirectory(t, root, w.blobs)
	w.nothingLeft(t)
	if found, err := names(w.For(holder)); err != nil || !slices.Equal(found, []string{"ns/" + one.DiffID.String()}) {
		t.Errorf("snapshots %v: %v", found, err)
	}
	mounts, err := w.For(holder).Prepare(ctx, "key", "ns/"+one.DiffID.String())
	must(t, err)
	if n := len(List(t, bound(t, mounts, "rw"))); n != 3000+40+1 {
		t.Errorf("%d paths", n)
	}
}

// TestDirectoryKillChild is the child of TestDirectoryKill.
func TestDirectoryKillChild(t *testing.T) {
	root, ok := childOf(killChild)
	if !ok {
		t.Skip("TestDirectoryKill runs this test in a child process")
	}
	w := openDirectory(t, root, memory{})
	sn := w.For(holder)
	top, err := names(sn)
	must(t, err)
	_, err = sn.Prepare(ctx, "key", top[0])
	t.Fatal("the process was not killed", err)
}

// TestDirectoryBesideRemoval copies a parent whose upper layer is removed during the copy and then
// committed again under the same name in another directory. The copy is complete.
func TestDirectoryBesideRemoval(t *testing.T) {
	requireRoot(t)
	w := openDirectory(t, memoryDir(t), memory{})
	sn := w.For(holder)
	lower, upper := many(t, w), w.blobs.add(t, Tar(t, F("upper", "1")))
	bottom, err := extract(ctx, sn, w, []layer.Pair{lower}, false, "ns")
	must(t, err)
	put := func() error {
		mounts, err := sn.Prepare(ctx, "extract-1 upper", bottom)
		if err != nil {
			return err
		}
		_, err = w.Apply(ctx, upper.Blob, mounts)
		return errors.Join(err, sn.Commit(ctx, "top", "extract-1 upper"))
	}
	must(t, put())
	replaced := make(chan error, 1)
	go func() {
		if !copying(ctx, w.root) {
			replaced <- errors.New("no copy began")
			return
		}
		replaced <- errors.Join(sn.Remove(ctx, "top"), put())
	}()
	mounts, err := sn.Prepare(ctx, "key", "top")
	must(t, <-replaced)
	if errdefs.IsNotFound(err) { // the parent was absent when the copy ended
		mounts, err = sn.Prepare(ctx, "key", "top")
	}
	must(t, err)
	lines := List(t, bound(t, mounts, "rw"))
	if len(lines) != 3000+40+2 || lines[len(lines)-1] != `upper file "1"` {
		t.Errorf("%d paths, the last is %s", len(lines), lines[len(lines)-1])
	}
	w.nothingLeft(t)
}
