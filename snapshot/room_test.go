package snapshot_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestSmallDisk checks that an extraction and a copy end with a clear error before the disk is full.
func TestSmallDisk(t *testing.T) {
	requireMounts(t)
	dir := memoryFS(t, "64m")
	free := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		return int64(st.Bavail) * st.Bsize
	}
	w := openAt(t, dir, memory{})
	files := func(n int) (items []Item) {
		for i := range n {
			items = append(items, F(fmt.Sprint("file", i), strings.Repeat(fmt.Sprint(i%10), 1<<20)))
		}
		return items
	}
	tooFull := func(what string, err error) {
		t.Helper()
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "too full") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := w.Layers().Unpack(ctx, holder, w.blobs.add(t, Tar(t, files(70)...)))
	tooFull("a layer of 70 MiB", err)
	_, err = w.Sweep(ctx)
	must(t, err)
	if n := free(); n < 50<<20 {
		t.Errorf("%d bytes are free after the sweep", n)
	}
	rec, err := w.Layers().Unpack(ctx, holder, w.blobs.add(t, Tar(t, files(40)...)))
	must(t, err)
	_, err = w.Layers().Assemble(ctx, holder, digest.FromString("m"), []metadata.Layer{rec}, nil)
	tooFull("a copy of 40 MiB", err)
	if n := free(); n < 512<<10 {
		t.Errorf("%d bytes are free after the copy", n)
	}
}

// TestInterrupted checks that planning, merging and Check test their context repeatedly and end when it ends.
func TestInterrupted(t *testing.T) {
	requireRoot(t)
	const n = 1000
	var lower, upper []Item
	for i := range n {
		lower = append(lower, F(at("a/f", i), "1"))
		upper = append(upper, H(at("b/l", i), at("a/f", i)))
	}
	run := func(end int) (checks int, err error) {
		w := openAt(t, memoryDir(t), memory{})
		var recs []metadata.Layer
		for _, items := range [][]Item{lower, upper} {
			rec, err := w.Layers().Unpack(ctx, holder, w.blobs.add(t, Tar(t, items...)))
			must(t, err)
			recs = append(recs, rec)
		}
		c := NewCountdown(end)
		defer c.Cancel()
		if _, err := w.Layers().Assemble(c, holder, digest.FromString("m"), recs, nil); err != nil {
			return c.Calls(), err
		}
		err = w.Check(c, func(err metadata.Fault) { t.Error(err) })
		return c.Calls(), err
	}
	checks, err := run(0)
	must(t, err)
	if checks < 4*n/64 {
		t.Errorf("the context was checked %d times", checks)
	}
	for part := 1; part < 6; part++ {
		if _, err := run(checks * part / 6); !strings.Contains(fmt.Sprint(err), context.Canceled.Error()) {
			t.Errorf("context ended at check %d of %d: %v", checks*part/6, checks, err)
		}
	}
}
