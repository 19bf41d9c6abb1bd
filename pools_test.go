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
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestPoolsApart puts each pool of a root on its own disk or under its own project quota, before
// and after the first use of the root. Pulls, snapshots, repairs and collections work as on one
// disk.
func TestPoolsApart(t *testing.T) {
	requireRoot(t)
	reg := registrytest.New(t)
	push(t, reg, "1", base, []Item{W("d/.wh.a"), F("d/new", "x"), F("only/implied", "y")})
	push(t, reg, "2", []Item{F("other", "z"), H("link", "other")})
	xfs := t.TempDir()
	mountXFS(t, xfs)
	disk := func(t *testing.T, _ int, dir string) { mountTmpfs(t, dir, "size=16m,mode=700") }
	project := func(t *testing.T, n int, dir string) { setProject(t, dir, uint32(100+n)) }
	for _, tc := range []struct {
		name  string
		base  string
		apart func(t *testing.T, n int, dir string)
		pools []string
	}{
		{"blobs on another disk", "", disk, []string{"blobs"}},
		{"the algorithm's blobs on another disk", "", disk, []string{"blobs/sha256"}},
		{"ingest on another disk", "", disk, []string{"ingest"}},
		{"layers on another disk", "", disk, []string{"layers"}},
		{"rootfs on another disk", "", disk, []string{"rootfs"}},
		{"the algorithm's rootfs on another disk", "", disk, []string{"rootfs/sha256"}},
		{"snapshots on another disk", "", disk, []string{"snapshots"}},
		{"every pool on its own disk", "", disk, []string{"blobs", "ingest", "layers", "rootfs", "snapshots"}},
		{"a project for the root", xfs, project, []string{"."}},
		{"a project for each pool", xfs, project, []string{"blobs", "ingest", "layers", "rootfs", "snapshots"}},
		{"a project for each algorithm", xfs, project, []string{"blobs/sha256", "rootfs/sha256"}},
	} {
		for _, daemon := range []bool{false, true} {
			for _, used := range []bool{false, true} {
				if used && tc.base == "" {
					continue // a mount would hide the existing content
				}
				t.Run(fmt.Sprintf("%s/daemon=%v/used=%v", tc.name, daemon, used), func(t *testing.T) {
					t.Parallel()
					dir := t.TempDir()
					if tc.base != "" {
						dir = filepath.Join(tc.base, strings.ReplaceAll(t.Name(), "/", "-"))
					}
					r := &root{filepath.Join(dir, "root"), daemon}
					must(t, os.MkdirAll(r.dir, 0o700))
					r.with(t, func(*tank.Tank) {}) // creates the pools
					if used {
						for _, tag := range []string{"1", "2"} { // leaves layers that the assembly can consume
							_, err := r.pull(t, reg.Host+"/x:"+tag, &tank.PullOptions{NoRootfs: true})
							must(t, err)
						}
						r.with(t, func(tk *tank.Tank) { removeAll(t, tk, reg.Host+"/x:2") })
					}
					for n, pool := range tc.pools {
						must(t, os.MkdirAll(filepath.Join(r.dir, pool), 0o700))
						tc.apart(t, n, filepath.Join(r.dir, pool))
					}
					worksApart(t, r, reg.Host)
				})
			}
		}
	}
}

// worksApart runs each operation that renames files and directories in a root.
func worksApart(t *testing.T, r *root, host string) {
	t.Helper()
	ctx := t.Context()
	r.with(t, func(tk *tank.Tank) {
		img, err := tk.Pull(ctx, host+"/x:1", nil)
		must(t, err)
		want := append(
			slices.DeleteFunc(slices.Clone(wantBase), func(s string) bool { return strings.HasPrefix(s, "d/a ") }),
			"d/new", "only", "only/implied")
		if got := list(t, img.Rootfs); !samePaths(got, want) {
			t.Errorf("rootfs:\n%s", strings.Join(got, "\n"))
		}
		_, err = tk.Pull(ctx, host+"/x:1", &tank.PullOptions{Refresh: true})
		must(t, err)
		if r.daemon {
			useSnapshots(t, tk)
		}
		must(t, tk.Check(ctx, func(f tank.Fault) { t.Error(f) }))
	})
	for _, name := range []string{"oci-layout", "index.json"} {
		if _, err := os.Stat(filepath.Join(r.dir, name)); err != nil {
			t.Error(err)
		}
	}
	r.with(t, func(tk *tank.Tank) { // provisional layers are compared with their seals
		img, err := tk.Pull(ctx, host+"/x:1", &tank.PullOptions{Offline: true})
		must(t, err)
		must(t, os.RemoveAll(filepath.Join(img.Rootfs, "d"))) // must be assembled again, even from consumed layers
		_, err = tk.Pull(ctx, host+"/x:1", &tank.PullOptions{Refresh: true})
		must(t, err)
		must(t, tk.Check(ctx, func(f tank.Fault) { t.Error(f) }))
		removeAll(t, tk, host+"/x:1")
	})
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func removeAll(t *testing.T, tk *tank.Tank, refs ...string) {
	t.Helper()
	for _, ref := range refs {
		must(t, tk.Remove(t.Context(), ref))
	}
	_, err := tk.GC(t.Context())
	must(t, err)
}

// samePaths compares only the paths of two listings.
func samePaths(got, want []string) bool {
	path := func(lines []string) (paths []string) {
		for _, l := range lines {
			p, _, _ := strings.Cut(l, " ")
			paths = append(paths, p)
		}
		slices.Sort(paths)
		return paths
	}
	return slices.Equal(path(got), path(want))
}

// useSnapshots prepares, writes, commits and removes the snapshot of a container.
func useSnapshots(t *testing.T, tk *tank.Tank) {
	t.Helper()
	ctx := context.Background()
	sn := tk.Snapshots().For(metadata.Containerd)
	mounts, err := sn.Prepare(ctx, "active", "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(mounts[0].Source, "written"), []byte("1"), 0o600))
	must(t, sn.Commit(ctx, "committed", "active"))
	_, err = sn.Prepare(ctx, "above", "committed")
	must(t, err)
	must(t, sn.Remove(ctx, "above"))
	must(t, sn.Remove(ctx, "committed"))
}

// TestPoolsAreDirectories shows that a root with a symbolic link in the place of a pool is refused:
// other users may be able to write to the target.
func TestPoolsAreDirectories(t *testing.T) {
	for _, pool := range []string{"blobs", "blobs/sha256", "ingest", "layers", "rootfs", "snapshots"} {
		t.Run(pool, func(t *testing.T) {
			r := &root{filepath.Join(t.TempDir(), "root"), true}
			r.with(t, func(*tank.Tank) {})
			path, elsewhere := filepath.Join(r.dir, pool), t.TempDir()
			must(t, os.RemoveAll(path))
			must(t, os.Symlink(elsewhere, path))
			tk, err := tank.Open(r.dir, &tank.Options{Daemon: true})
			if err == nil {
				must(t, tk.Close())
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), filepath.Base(pool)) {
				t.Errorf("link in place of a pool: %v", err)
			}
			if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
				t.Errorf("target of the link: %v %v", left, err)
			}
		})
	}
}

// TestLostAndFound shows that a root keeps the lost+found of its file system.
func TestLostAndFound(t *testing.T) {
	r := newRoot(t, false)
	r.with(t, func(*tank.Tank) {})
	var all []string
	for _, pool := range []string{"blobs", "blobs/sha256", "ingest", "layers", "rootfs", "snapshots"} {
		all = append(all, filepath.Join(r.dir, pool, "lost+found"))
		must(t, os.Mkdir(all[len(all)-1], 0o700))
	}
	r.with(t, func(tk *tank.Tank) { removeAll(t, tk) })
	for _, path := range all {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestLeftovers shows that Open deletes what an earlier process left under staged names while this
// process uses such names, and that index.json is replaced whatever lies beside it.
func TestLeftovers(t *testing.T) {
	r := newRoot(t, false)
	r.with(t, func(*tank.Tank) {})
	elsewhere := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(elsewhere, []byte("kept"), 0o600))
	for i := range 30 {
		for _, name := range []string{
			"staging/index.json", "staging/content-1-1", "staging/layer-1",
			"layers/.layer-1", "rootfs/sha256/.rootfs-1", "snapshots/.trash-1", "ingest/.trash-1",
		} {
			must(t, os.MkdirAll(filepath.Join(r.dir, filepath.Dir(name)), 0o700))
			must(t, os.WriteFile(filepath.Join(r.dir, name), nil, 0o600))
		}
		must(t, os.WriteFile(filepath.Join(r.dir, "index.json"), fmt.Appendf(nil, `{"old":%d}`, i), 0o600))
		must(t, os.Symlink(elsewhere, filepath.Join(r.dir, "index.json.new")))
		r.with(t, func(tk *tank.Tank) {
			_, err := tk.GC(t.Context())
			must(t, err)
		})
		if left := r.left(t); len(left) > 0 {
			t.Fatalf("left: %q", left)
		}
		if _, err := os.Lstat(filepath.Join(r.dir, "index.json.new")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("index.json.new: %v", err)
		}
	}
	if b, err := os.ReadFile(elsewhere); err != nil || string(b) != "kept" {
		t.Errorf("target of the link: %q %v", b, err)
	}
}
