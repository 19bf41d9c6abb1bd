package tank_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// fill takes all but a number of inodes, or of bytes, of a disk with files in dir. It returns a
// function that frees the disk again.
func fill(t *testing.T, dir string, inodes bool, spare int) (free func()) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o700))
	if inodes {
		n := 0
		for ; ; n++ {
			err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600)
			if errors.Is(err, unix.ENOSPC) {
				break
			}
			must(t, err)
		}
		for i := range min(spare, n) {
			must(t, os.Remove(filepath.Join(dir, fmt.Sprint(i))))
		}
	} else {
		f, err := os.Create(filepath.Join(dir, "filler"))
		must(t, err)
		size := 0
		for chunk := make([]byte, 4096); ; size += len(chunk) {
			if _, err = f.Write(chunk); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		must(t, f.Truncate(int64(max(size-spare, 0))))
		must(t, errors.Join(f.Sync(), f.Close()))
	}
	return func() { must(t, os.RemoveAll(dir)) }
}

// TestFullByBytesAndInodes pulls an image while a disk has too few bytes or inodes left, in steps from
// none to enough. Each failure says that the disk is full, Check finds nothing, rm and gc work on the
// full disk, and the same pull succeeds once something else has freed it.
func TestFullByBytesAndInodes(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	var many []Item
	for i := range 60 {
		many = append(many, F(fmt.Sprintf("f%d", i), strings.Repeat(fmt.Sprint(i), 10_000)))
	}
	push(t, reg, "1", many, []Item{W(".wh.f1"), F("n", "2")})
	push(t, reg, "kept", []Item{F("kept", "z")})
	ref, kept := reg.Host+"/x:1", reg.Host+"/x:kept"
	for _, inodes := range []bool{false, true} {
		t.Run(fmt.Sprintf("inodes=%v", inodes), func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			mountTmpfs(t, disk, "size=32m,nr_inodes=600,mode=700")
			spares := []int{0, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20}
			if inodes {
				spares = []int{0, 1, 2, 5, 10, 20, 50, 90, 200}
			}
			failures := 0
			for _, spare := range spares {
				if fullDisk(t, &root{filepath.Join(disk, "root"), false}, ref, kept, func() func() {
					return fill(t, filepath.Join(disk, "filler"), inodes, spare)
				}) {
					failures++
				}
			}
			if failures == 0 || failures == len(spares) {
				t.Errorf("%d of %d pulls failed", failures, len(spares))
			}
		})
	}
}

// fullDisk pulls ref on a full disk, and reports whether that failed.
func fullDisk(t *testing.T, r *root, ref, kept string, full func() (free func())) (failed bool) {
	t.Helper()
	ctx := t.Context()
	check := func(when string) {
		r.with(t, func(tk *tank.Tank) { must(t, tk.Check(ctx, func(f tank.Fault) { t.Errorf("%s: %v", when, f) })) })
	}
	_, err := r.pull(t, kept, nil)
	must(t, err)
	free := full()
	tk, err := tank.Open(r.dir, nil)
	if err == nil {
		err = errors.Join(pullIt(ctx, tk, ref), tk.Close())
	}
	if failed = err != nil; failed && (!errdefs.IsResourceExhausted(err) || !cause.Is(err, cause.DiskFull)) {
		t.Errorf("a pull on a full disk: %v", err)
	}
	check(fmt.Sprintf("full, after %v", err))
	if failed { // also a full disk can be freed
		r.with(t, func(tk *tank.Tank) { must(t, removeIt(ctx, tk, kept)) })
	}
	free()
	_, err = r.pull(t, ref, nil)
	must(t, err)
	check("free again")
	r.with(t, func(tk *tank.Tank) {
		must(t, removeIt(ctx, tk, ref))
		must(t, removeIt(ctx, tk, kept))
	})
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	return failed
}
