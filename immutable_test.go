package tank_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestImmutable has an immutable file or directory in each pool. A collection frees everything
// else, names the immutable path and succeeds, and so does a later collection of another process.
// Once the flag is cleared, the path is freed.
func TestImmutable(t *testing.T) {
	requireRoot(t)
	const immutable = unix.STATX_ATTR_IMMUTABLE // the same bit as FS_IMMUTABLE_FL
	for name, tc := range map[string]struct {
		daemon bool
		path   string // glob pattern, relative to the root
	}{
		"a blob":              {false, "blobs/sha256/*"},
		"a file of a rootfs":  {false, "rootfs/sha256/*/d/a"},
		"a rootfs":            {false, "rootfs/sha256/*[0-9a-f]"},
		"a seal":              {false, "rootfs/sha256/*.seal"},
		"a file of a layer":   {true, "layers/*/fs/d/a"},
		"a layer":             {true, "layers/*"},
		"what was written":    {true, "snapshots/*/fs/locked"},
		"a snapshot":          {true, "snapshots/*"},
		"a download":          {false, "ingest/*"},
		"data of a download":  {false, "ingest/*/data"},
		"an entry of no kind": {false, "layers/other"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			r := newRoot(t, tc.daemon)
			push(t, reg, "1", base, []Item{F("more", "x")})
			img, err := r.pull(t, reg.Host+"/x:1", nil)
			must(t, err)
			for _, dir := range []string{"layers/other", "ingest/other"} {
				must(t, os.Mkdir(filepath.Join(r.dir, dir), 0o700))
				must(t, os.WriteFile(filepath.Join(r.dir, dir, "data"), []byte("x"), 0o600))
			}
			var kept uint64
			r.with(t, func(tk *tank.Tank) {
				ctx := context.Background()
				if tc.daemon {
					sn := tk.Snapshots().For(metadata.Containerd)
					mounts, err := sn.Prepare(ctx, "active", "")
					must(t, err)
					must(t, os.WriteFile(filepath.Join(mounts[0].Source, "locked"), nil, 0o600))
					defer func() {
						must(t, sn.Remove(ctx, "active"))
						must(t, sn.Cleanup(ctx))
					}()
				}
				found, err := filepath.Glob(filepath.Join(r.dir, tc.path))
				must(t, err)
				if len(found) == 0 {
					t.Fatal("no file matches the path of the row")
				}
				setFlags(t, found[0], immutable, 0)
				kept = inodeOf(t, found[0])
				t.Cleanup(func() { clearFlag(t, r.dir, kept, immutable) })
				must(t, tk.Remove(ctx, img.Ref))
			})
			for range 2 {
				r.with(t, func(tk *tank.Tank) {
					got, err := tk.GC(t.Context())
					must(t, err)
					if !strings.Contains(got.Kept, "immutable") || !strings.Contains(got.Kept, r.dir) {
						t.Errorf("kept %q", got.Kept)
					}
				})
			}
			if !clearFlag(t, r.dir, kept, immutable) {
				t.Fatal("the immutable file is gone")
			}
			r.with(t, func(tk *tank.Tank) {
				got, err := tk.GC(t.Context())
				must(t, err)
				if got.Kept != "" {
					t.Errorf("kept %q", got.Kept)
				}
			})
			if left := r.left(t); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// clearFlag clears the flag of the file with the inode ino below dir and reports whether the file
// exists.
func clearFlag(t *testing.T, dir string, ino uint64, flag int) (found bool) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && (e.IsDir() || e.Type().IsRegular()) && inodeOf(t, path) == ino {
			setFlags(t, path, 0, flag)
			found = true
		}
		return err
	}))
	return found
}
