package content

import (
	"context"
	"fmt"
	"math"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/diskspace"
)

// disk is a small disk. What is written to data files reduces its free space.
type disk struct {
	free int64
	r    *root
	seen int // operations of the history that count has seen
}

// use makes d the disk of a root.
func (d *disk) use(r *root) {
	d.r = r
	r.space.Space = func(diskspace.File) (diskspace.Space, error) {
		d.count()
		return diskspace.Space{Free: d.free}, nil
	}
}

// count subtracts what was written since the last call.
func (d *disk) count() {
	history := d.r.fs.History()
	for _, line := range history[d.seen:] {
		var name string
		var offset, n int64
		if _, err := fmt.Sscanf(line, "write %s %d+%d", &name, &offset, &n); err == nil && path.Base(name) == "data" {
			d.free -= n
		}
	}
	d.seen = len(history)
}

// TestSpace shows that a download begins only if all of it fits beside the downloads that have
// begun.
func TestSpace(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	d := disk{free: 100}
	d.use(r)
	hs := r.For(alice)
	opens := func(ref string, size int64) bool {
		t.Helper()
		w, err := hs.Writer(t.Context(), content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Size: size}))
		if err != nil {
			class(t, errdefs.IsResourceExhausted, err)
			return false
		}
		must(t, w.Close())
		return true
	}
	first := start(t, hs, "first", ocispec.Descriptor{Size: 60})
	for _, tc := range []struct {
		after string
		do    func()
		most  int64 // bytes that a second download may have
	}{
		{"the first began", func() {}, 40},
		{"it has written a half", func() { write(t, first, strings.Repeat("x", 30)) }, 40},
		{"somebody else freed some", func() { d.free += 10 }, 50},
		{"it begins anew", func() { must(t, first.Truncate(0)); d.free += 30 }, 50},
		{"it has written a part", func() { write(t, first, strings.Repeat("x", 20)) }, 50},
		{"it was closed", func() { must(t, first.Close()) }, 90},
		{"it is resumed", func() { first = start(t, hs, "first", ocispec.Descriptor{Size: 60}) }, 50},
		{"it was aborted", func() { must(t, hs.Abort(t.Context(), "first")); must(t, first.Close()) }, 90},
	} {
		tc.do()
		for _, size := range []int64{tc.most + 1, math.MaxInt64} {
			if opens("second", size) {
				t.Errorf("after %s: space for %d bytes", tc.after, size)
			}
		}
		if !opens("second", tc.most) {
			t.Errorf("after %s: no space for %d bytes", tc.after, tc.most)
		}
		must(t, hs.Abort(t.Context(), "second"))
	}
	if n := r.space.Promises(); n != 0 {
		t.Errorf("%d promises are left", n)
	}
	// A download that does not fit is not kept to be resumed: it would take space on a full disk
	// until then.
	part := start(t, hs, "part", ocispec.Descriptor{Size: 60})
	write(t, part, "0123456789")
	must(t, part.Close())
	d.free = 49
	if opens("part", 60) {
		t.Error("there is space for the rest")
	}
	if names := r.names("ingest"); len(names) > 0 {
		t.Errorf("left %v", names)
	}
}

// TestSpaceForUnannouncedBytes shows that an ingest of unknown length, or one that is longer than
// announced, does not fill the disk.
func TestSpaceForUnannouncedBytes(t *testing.T) {
	for name, size := range map[string]int64{"unknown": 0, "longer": 1} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			d := disk{free: spare + 20<<20}
			d.use(r)
			w := start(t, r.For(alice), "ref", ocispec.Descriptor{Size: size})
			piece := make([]byte, 1<<20)
			for range 12 {
				write(t, w, string(piece))
			}
			var err error
			for i := 0; i < 16 && err == nil; i++ {
				_, err = w.Write(piece)
			}
			class(t, errdefs.IsResourceExhausted, err)
			if d.free < spare-writeback {
				t.Errorf("%d bytes were left", d.free)
			}
			must(t, w.Close())
			if names := r.names("ingest"); len(names) > 0 {
				t.Errorf("left %v", names)
			}
		})
	}
}

// TestSpaceForAnImage shows which bytes of an image count.
func TestSpaceForAnImage(t *testing.T) {
	shortages := 0
	d := disk{free: 1 << 20}
	r := open(t, t.TempDir(), &Options{OnShortage: func(context.Context) bool {
		shortages++
		return shortages == 1
	}})
	d.use(r)
	hs := r.For(alice)
	here := put(t, r.For(bob), "here")
	lacks := ocispec.Descriptor{Digest: digest.FromString("lacks"), Size: 100}
	part := ocispec.Descriptor{Digest: digest.FromString("part"), Size: 50}
	w := start(t, hs, "layer-"+part.Digest.String(), part)
	write(t, w, strings.Repeat("x", 20))
	must(t, w.Close())
	d.count()
	all := []ocispec.Descriptor{lacks, {Digest: here, Size: 4}, part, lacks}
	for _, tc := range []struct {
		name      string
		free      int64
		again     bool
		ok        bool
		shortages int
	}{
		{"all that lacks", 130, false, true, 0},
		{"a byte less, and none is made", 129, false, false, 2},
		{"all of it again", 154, true, true, 0},
		{"a byte less", 153, true, false, 2},
	} {
		shortages = 1
		if d.free = tc.free; tc.ok {
			shortages = 0
		}
		err := hs.CheckSpace(t.Context(), all, tc.again)
		if (err == nil) != tc.ok || err != nil && !errdefs.IsResourceExhausted(err) || shortages != tc.shortages {
			t.Errorf("%s: %v after %d shortages", tc.name, err, shortages)
		}
	}
	// Options.OnShortage frees space.
	shortages, d.free = 0, 0
	r.opts.OnShortage = func(context.Context) bool { d.free = 130; return true }
	must(t, hs.CheckSpace(t.Context(), all, false))
	d.free = 0
	_, err := hs.Writer(t.Context(), content.WithRef("x"), content.WithDescriptor(ocispec.Descriptor{Size: 130}))
	must(t, err)
	sum := []ocispec.Descriptor{{Digest: "a", Size: math.MaxInt64}, {Digest: "b", Size: 1}}
	class(t, errdefs.IsResourceExhausted, hs.CheckSpace(t.Context(), sum, true))
}

// TestSlowPromise shows that a download which announces as many bytes as are free, and is slow,
// does not keep others from the disk.
func TestSlowPromise(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	d := disk{free: 64 << 20}
	d.use(r)
	const window = 5 * time.Second // over which a rate is measured
	now := time.Now()
	r.space.Now = func() time.Time { return now }
	slow := start(t, r.For(alice), "slow", ocispec.Descriptor{Size: d.free})
	other := ocispec.Descriptor{Size: 8 << 20}
	_, err := r.For(bob).Writer(t.Context(), content.WithRef("other"), content.WithDescriptor(other))
	class(t, errdefs.IsResourceExhausted, err)
	for range 3 {
		now = now.Add(window)
		write(t, slow, "x")
	}
	start(t, r.For(bob), "other", other)
	write(t, slow, strings.Repeat("x", 4<<20)) // it becomes fast
	now = now.Add(window)
	_, err = r.For(bob).Writer(t.Context(), content.WithRef("third"), content.WithDescriptor(other))
	class(t, errdefs.IsResourceExhausted, err)
}
