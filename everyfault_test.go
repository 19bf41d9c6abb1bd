package tank_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// faultyWork is a way to use a root: before runs on an intact disk, and work on one with a fault.
type faultyWork struct {
	name   string
	daemon bool
	before func(ctx context.Context, tk *tank.Tank, ref string) error
	work   func(ctx context.Context, tk *tank.Tank, ref string) error
}

func pullIt(ctx context.Context, tk *tank.Tank, ref string) error {
	_, err := tk.Pull(ctx, ref, nil)
	return err
}

func removeIt(ctx context.Context, tk *tank.Tank, ref string) error {
	if err := tk.Remove(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err := tk.GC(ctx)
	return err
}

// faultySnapshots makes and removes snapshots, as containerd does. It can be repeated.
func faultySnapshots(ctx context.Context, tk *tank.Tank, _ string) error {
	sn := tk.Snapshots().For(metadata.Containerd)
	for _, key := range []string{"above", "committed", "active"} { // of an attempt that failed
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	mounts, err := sn.Prepare(ctx, "active", "")
	if err != nil {
		return err
	}
	written := filepath.Join(mounts[0].Source, "written")
	if err := os.WriteFile(written, []byte("1"), 0o600); err != nil {
		return err
	}
	if err := sn.Commit(ctx, "committed", "active"); err != nil {
		return err
	}
	_, err = sn.Prepare(ctx, "above", "committed")
	err = errors.Join(err, sn.Remove(ctx, "above"), sn.Remove(ctx, "committed"))
	_, gcErr := tk.GC(ctx)
	return errors.Join(err, gcErr)
}

func nothing(context.Context, *tank.Tank, string) error { return nil }

// TestEveryFault makes each operation on the file system fail in turn, in every kind of work, with
// each of the errors that broken, full and read-only disks and processes without memory or
// descriptors have. Each error has a class and advice. Afterwards Check finds nothing, what was
// there before is there, the work succeeds, and removal leaves nothing. A run takes one error for
// each operation, the next run of the list another; TANK_TEST_FAULTS=all takes all.
func TestEveryFault(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1", base, []Item{W("d/.wh.a"), F("d/new", "x"), F("only/implied", "y"), H("link", "b")})
	push(t, reg, "kept", []Item{F("kept", "z")})
	ref, kept := reg.Host+"/x:1", reg.Host+"/x:kept"
	refresh := func(ctx context.Context, tk *tank.Tank, ref string) error {
		_, err := tk.Pull(ctx, ref, &tank.PullOptions{Refresh: true})
		return err
	}
	noRootfs := func(ctx context.Context, tk *tank.Tank, ref string) error {
		_, err := tk.Pull(ctx, ref, &tank.PullOptions{NoRootfs: true})
		return err
	}
	errs := []string{"EIO", "ENOSPC", "EROFS", "EMFILE", "ENOMEM", "EDQUOT"}
	moments := []string{"", " after", " during"}
	for _, w := range []faultyWork{
		{"pull", false, nothing, pullIt},
		{"pull in a daemon's root", true, nothing, pullIt},
		{"pull without a rootfs", true, nothing, noRootfs},
		{"assemble from layers", true, noRootfs, pullIt},
		{"refresh", false, pullIt, refresh},
		{"remove and collect", false, pullIt, removeIt},
		{"remove and collect in a daemon's root", true, pullIt, removeIt},
		{"snapshots", true, nothing, faultySnapshots},
	} {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				hit := false
				for i, errno := range errs {
					if i != n%len(errs) && os.Getenv("TANK_TEST_FAULTS") != "all" {
						continue
					}
					fault := fmt.Sprintf("any #%d: fail %s%s", n, errno, moments[n/len(errs)%len(moments)])
					hit = everyFault(t, w, fault, ref, kept) || hit
				}
				if !hit {
					if n < 10 {
						t.Errorf("only %d operations were hit", n-1)
					}
					return
				}
			}
		})
	}
}

// everyFault does a work with one fault, and reports whether the fault hit.
func everyFault(t *testing.T, w faultyWork, fault, ref, kept string) (hit bool) {
	t.Helper()
	ctx := t.Context()
	r := &root{filepath.Join(memoryDir(t), "root"), w.daemon}
	defer os.RemoveAll(filepath.Dir(r.dir))
	r.with(t, func(tk *tank.Tank) {
		must(t, pullIt(ctx, tk, kept))
		must(t, w.before(ctx, tk, ref))
	})
	disk := fsystest.New(t, r.dir, fault)
	tk, err := tank.Open(r.dir, &tank.Options{Daemon: w.daemon, FS: disk})
	if err == nil {
		err = w.work(ctx, tk, ref)
		err = errors.Join(err, tk.Close())
	}
	if err != nil && (errclass.Of(err) == nil || cause.Of(err).Kind == "") {
		t.Errorf("%s: %v has class %v and cause %q", fault, err, errclass.Of(err), cause.Of(err).Kind)
	}
	if err != nil && disk.Hits() == 0 {
		t.Errorf("%s: %v without a fault", fault, err)
	}
	var was, now []string
	r.with(t, func(tk *tank.Tank) {
		must(t, tk.Check(ctx, func(f tank.Fault) { t.Errorf("%s: %v, after %v", fault, f, err) }))
		img, err := tk.Pull(ctx, kept, &tank.PullOptions{Offline: true})
		must(t, err)
		was = list(t, img.Rootfs)
		if err := w.work(ctx, tk, ref); err != nil {
			t.Errorf("%s: once more: %v", fault, err)
		}
		must(t, tk.Check(ctx, func(f tank.Fault) { t.Errorf("%s: after another attempt: %v", fault, f) }))
		img, err = tk.Pull(ctx, kept, &tank.PullOptions{Offline: true})
		must(t, err)
		now = list(t, img.Rootfs)
		must(t, removeIt(ctx, tk, ref))
		must(t, removeIt(ctx, tk, kept))
	})
	if want := []string{`kept file "z"`}; !slices.Equal(was, want) || !slices.Equal(now, want) {
		t.Errorf("%s: the image that was there has %v and %v", fault, was, now)
	}
	if left := r.left(t); len(left) > 0 {
		t.Errorf("%s: left %s", fault, strings.Join(left, ", "))
	}
	return disk.Hits() > 0
}

// TestDiskComesBack has a disk fail under an open root, as when the kernel makes a file system
// read-only after an error, and come back. Meanwhile every work fails with a class and advice, and
// what is here is served. Afterwards every work succeeds in the same process.
func TestDiskComesBack(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1", base, []Item{W("d/.wh.a")})
	push(t, reg, "kept", []Item{F("kept", "z")})
	ref, kept := reg.Host+"/x:1", reg.Host+"/x:kept"
	for _, errno := range []string{"EROFS", "EIO", "ENOSPC", "EMFILE", "ENOMEM"} {
		t.Run(errno, func(t *testing.T) {
			ctx := t.Context()
			r := &root{filepath.Join(memoryDir(t), "root"), true}
			disk := fsystest.New(t, r.dir)
			tk, err := tank.Open(r.dir, &tank.Options{Daemon: true, FS: disk})
			must(t, err)
			must(t, pullIt(ctx, tk, kept))
			for round := range 3 {
				disk.Add(t, "any #1+: fail "+errno)
				for name, work := range map[string]func(context.Context, *tank.Tank, string) error{
					"pull": pullIt, "snapshots": faultySnapshots,
				} {
					err := work(ctx, tk, ref)
					if err == nil || errclass.Of(err) == nil || cause.Of(err).Kind == "" {
						t.Errorf("round %d, %s: %v has class %v and cause %q", round, name, err, errclass.Of(err),
							cause.Of(err).Kind)
					}
				}
				img, err := tk.Pull(ctx, kept, &tank.PullOptions{Offline: true})
				if err != nil || !slices.Equal(list(t, img.Rootfs), []string{`kept file "z"`}) {
					t.Errorf("round %d: the image that is here: %v", round, err)
				}
				disk.Clear()
				must(t, pullIt(ctx, tk, ref))
				must(t, faultySnapshots(ctx, tk, ref))
				must(t, tk.Check(ctx, func(f tank.Fault) { t.Errorf("round %d: %v", round, f) }))
				must(t, removeIt(ctx, tk, ref))
			}
			must(t, removeIt(ctx, tk, kept))
			must(t, tk.Close())
			if left := r.left(t); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// memoryDir is a directory on a tmpfs, if there is one: a disk would be slow.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tank-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
