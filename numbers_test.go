package tank_test

import (
	"context"
	"crypto/rand"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// taken returns the bytes of the disk blocks below the pools of a root and counts each inode once.
func taken(t *testing.T, root string) (bytes int64) {
	t.Helper()
	seen := map[uint64]bool{}
	for _, pool := range []string{"blobs", "ingest", "layers", "rootfs", "snapshots"} {
		must(t, filepath.WalkDir(filepath.Join(root, pool), func(path string, _ fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err != nil || unix.Lstat(path, &st) != nil || seen[st.Ino] {
				return err
			}
			seen[st.Ino] = true
			bytes += st.Blocks * 512
			return nil
		}))
	}
	return bytes
}

// near reports whether a and b differ by at most 16 KiB: a file system allocates some blocks only
// when it writes data back.
func near(a, b int64) bool { return max(a-b, b-a) <= 16<<10 }

// TestNumbersAgreeWithDisk shows that Release frees what Holders reports as kept alone, and that
// the disk gets the bytes that GC and Release report as freed. The images have hard links, holes,
// small files and shared layers.
func TestNumbersAgreeWithDisk(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	zeros := F("zeros", strings.Repeat("\x00", 3<<20))
	base := []Item{D("d"), F("d/small", "1"), H("d/link", "d/small"), zeros, S("s", "d")}
	own := func(c string) []Item {
		return []Item{F("own", strings.Repeat(c, 1<<20)), H("same", "own"), F("d/small", c)}
	}
	reg := registrytest.New(t)
	push(t, reg, "1", base, own("1"))
	push(t, reg, "2", base, own("2"))
	for _, daemon := range []bool{false, true} {
		r := newRoot(t, daemon)
		for _, tag := range []string{"1", "2"} {
			_, err := r.pull(t, reg.Host+"/x:"+tag, nil)
			must(t, err)
		}
		r.with(t, func(tk *tank.Tank) {
			before := taken(t, r.dir)
			first, second := holderOf(t, tk, "image/"+reg.Host+"/x:1"), holderOf(t, tk, "image/"+reg.Host+"/x:2")
			if first.Exclusive < 1<<20 || first.Bytes <= first.Exclusive {
				t.Errorf("daemon %v: %+v", daemon, first)
			}
			// but for the pools themselves
			if sum := first.Bytes + second.Exclusive; sum > before || before-sum > 64<<10 {
				t.Errorf("daemon %v: both images keep %d of %d bytes", daemon, sum, before)
			}
			must(t, tk.Remove(ctx, reg.Host+"/x:1"))
			got, err := tk.GC(ctx)
			must(t, err)
			after := taken(t, r.dir)
			if !near(got.Bytes, before-after) || !near(got.Bytes, first.Exclusive) {
				t.Errorf("daemon %v: gc reports %d bytes, holders promised %d, the disk got %d",
					daemon, got.Bytes, first.Exclusive, before-after)
			}
			second = holderOf(t, tk, "image/"+reg.Host+"/x:2")
			released, err := tk.Release(ctx, second.Holder, nil)
			must(t, err)
			if rest := taken(t, r.dir); !near(released.Freed, after-rest) || !near(released.Freed, second.Exclusive) {
				t.Errorf("daemon %v: release reports %d bytes, holders promised %d, the disk got %d",
					daemon, released.Freed, second.Exclusive, after-rest)
			}
			if got, err := tk.GC(ctx); err != nil || got.Bytes != 0 {
				t.Errorf("daemon %v: nothing was left to free, but gc reports %+v, %v", daemon, got, err)
			}
		})
	}
}

// TestUnfinishedIsReported shows that GC keeps the partial downloads of an unfinished pull and
// reports their size, and that Release frees them.
func TestUnfinishedIsReported(t *testing.T) {
	t.Parallel()
	random := make([]byte, 2<<20)
	_, _ = rand.Read(random)
	raw := Tar(t, F("random", string(random)))
	reg := registrytest.New(t)
	layer := reg.Blob(ocispec.MediaTypeImageLayer, raw)
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer.Digest.String()) {
			return false
		}
		_, _ = w.Write(raw[:1<<20])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	r := newRoot(t, true)
	r.with(t, func(tk *tank.Tank) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ref := reg.Host + "/x:1"
		_, err := tk.Pull(ctx, ref, &tank.PullOptions{Progress: func(e tank.Event) {
			if e.Digest == layer.Digest && e.Offset == 1<<20 {
				cancel()
			}
		}})
		if err == nil {
			t.Fatal("a pull with half a layer succeeded")
		}
		got, err := tk.GC(context.Background())
		must(t, err)
		if len(got.Unfinished) != 1 || got.Unfinished[0].Holder != "pull/"+ref || got.Unfinished[0].Running ||
			got.Unfinished[0].Bytes < 1<<20 || got.Unfinished[0].Bytes > 1<<20+64<<10 {
			t.Errorf("unfinished: %+v", got.Unfinished)
		}
		before := taken(t, r.dir)
		released, err := tk.Release(context.Background(), "pull/"+ref, nil)
		must(t, err)
		if freed := before - taken(t, r.dir); !near(released.Freed, freed) || freed < 1<<20 {
			t.Errorf("released %+v, the disk got %d", released, freed)
		}
		if got, err := tk.GC(context.Background()); err != nil || len(got.Unfinished) > 0 || got.Bytes > 0 {
			t.Errorf("after the release: %+v, %v", got, err)
		}
	})
}
