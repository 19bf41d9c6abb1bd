package tank_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// rebuildRoot is a root with an image and an image without a rootfs. The root of a daemon also has
// the snapshot of a container.
type rebuildRoot struct {
	*root
	refs  []string
	files []string // blobs, layers and what the container wrote
}

func newRebuildRoot(t *testing.T, daemon bool) *rebuildRoot {
	t.Helper()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	push(t, reg, "2", base, []Item{F("d/n", "3")})
	r := &rebuildRoot{root: &root{filepath.Join(t.TempDir(), "root"), daemon},
		refs: []string{reg.Host + "/x:1", reg.Host + "/x:2"}}
	_, err := r.pull(t, r.refs[0], nil)
	must(t, err)
	_, err = r.pull(t, r.refs[1], &tank.PullOptions{NoRootfs: true})
	must(t, err)
	if daemon {
		r.with(t, func(tk *tank.Tank) {
			_, err := tk.Snapshots().For(metadata.Containerd).Prepare(context.Background(), "default/1/c", "")
			must(t, err)
		})
		names, err := os.ReadDir(filepath.Join(r.dir, "snapshots"))
		must(t, err)
		for _, n := range names {
			if n.Name()[0] != '.' {
				must(t, os.WriteFile(filepath.Join(r.dir, "snapshots", n.Name(), "fs", "written"), []byte("x"), 0o600))
			}
		}
	}
	r.files = r.kept(t)
	return r
}

// kept lists the blobs, the seals of layers and the files that containers wrote by name, without
// their directories.
func (r *rebuildRoot) kept(t *testing.T) []string {
	t.Helper()
	var names []string
	must(t, filepath.WalkDir(r.dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // the background has deleted it
			return nil
		case err != nil:
			return err
		case e.IsDir() && e.Name()[0] == '.':
			return fs.SkipDir
		}
		rel, _ := filepath.Rel(r.dir, path)
		switch top, _, _ := strings.Cut(rel, "/"); {
		case e.IsDir():
		case top == "blobs", top == "layers" && e.Name() == "seal", e.Name() == "written":
			names = append(names,
				strings.TrimPrefix(e.Name(), "blob-")+strings.Repeat(" seal", strings.Count(rel, "layers")))
		}
		return nil
	}))
	slices.Sort(names)
	return names
}

// lacks lists the files that the new root had and that are now missing.
func (r *rebuildRoot) lacks(t *testing.T) (missing []string) {
	t.Helper()
	now := r.kept(t)
	for _, name := range r.files {
		if !slices.Contains(now, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// after collects garbage in a rebuilt root and checks that the root is complete and of the same
// kind as before.
func (r *rebuildRoot) after(t *testing.T, names bool) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(r.dir, "tank-root")); bytes.Contains(b, []byte("daemon")) != r.daemon {
		t.Errorf("mark %q, %v", b, err)
	}
	tk, err := tank.Open(r.dir, &tank.Options{Existing: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tk.Close()
	if _, err := tk.GC(context.Background()); err != nil {
		t.Error(err)
	}
	if missing := r.lacks(t); len(missing) > 0 {
		t.Errorf("a collection removed %q", missing)
	}
	holders, err := tk.Holders(context.Background())
	must(t, err)
	for _, h := range holders {
		if h.Holder == "containerd" && !r.daemon {
			t.Errorf("a private root has the holder of a daemon: %+v", h)
		}
	}
	for i, ref := range r.refs {
		if !names {
			break
		}
		if _, err := tk.Pull(context.Background(), ref,
			&tank.PullOptions{Offline: true, NoRootfs: i == 1}); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	must(t, tk.Check(context.Background(), func(f tank.Fault) { t.Error(f) }))
}

// TestRebuildKeeps damages the database and index.json in every combination. Nothing is lost or
// collected.
func TestRebuildKeeps(t *testing.T) {
	t.Parallel()
	replace := func(with func(string) error) func(string) error {
		return func(path string) error { return errors.Join(os.Remove(path), with(path)) }
	}
	write := func(content string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(content), 0o600) }
	}
	cut := func(path string) error {
		fi, err := os.Stat(path)
		return errors.Join(err, os.Truncate(path, fi.Size()-20))
	}
	huge := func(path string) error { return errors.Join(write("")(path), os.Truncate(path, 1<<40)) }
	fifo := func(path string) error { return unix.Mkfifo(path, 0o600) }
	for dbName, db := range map[string]func(string) error{
		"intact": func(string) error { return nil }, "missing": os.Remove, "empty": write(""),
		"garbage": write(strings.Repeat("x", 1<<16)),
		"1 TB":    replace(huge), "a FIFO": replace(fifo),
	} {
		for indexName, index := range map[string]func(string) error{
			"intact": func(string) error { return nil }, "missing": os.Remove, "cut": cut, "garbage": write("{"),
			"empty":  write(""),
			"a FIFO": replace(fifo), "1 TB": replace(huge),
		} {
			t.Run(dbName+" and "+indexName, func(t *testing.T) {
				t.Parallel()
				for _, daemon := range []bool{false, true} {
					if daemon != (len(dbName+indexName)%2 == 0) && dbName != "intact" && dbName != "missing" {
						continue // one kind of root is enough
					}
					r := newRebuildRoot(t, daemon)
					must(t, db(filepath.Join(r.dir, "metadata.db")))
					must(t, index(filepath.Join(r.dir, "index.json")))
					must(t, os.Remove(filepath.Join(r.dir, "images.records")))
					rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
					if err != nil {
						t.Fatal(err)
					}
					names := dbName == "intact" || indexName == "intact"
					if rebuilt.Names != names {
						t.Errorf("names known: %v", rebuilt.Names)
					}
					if names != (rebuilt.Images == 2) && indexName != "cut" {
						t.Errorf("%+v", rebuilt)
					}
					if snapshots := map[bool]int{true: 1}[daemon]; rebuilt.Snapshots != snapshots {
						t.Errorf("snapshots: %+v", rebuilt)
					}
					r.after(t, names)
				}
			})
		}
	}
}

// TestRebuildDamagedPages damages one page of the database after the other. The records on the
// other pages stay, and nothing is lost.
func TestRebuildDamagedPages(t *testing.T) { // not parallel: a child inherits a lock until it executes a program
	r := newRebuildRoot(t, true)
	path := filepath.Join(r.dir, "metadata.db")
	intact, err := os.ReadFile(path)
	must(t, err)
	for page := 0; page < len(intact)/os.Getpagesize(); page++ {
		copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), true}, r.refs, r.files}
		must(t, exec.Command("cp", "-a", r.dir, copied.dir).Run())
		b := bytes.Clone(intact)
		copy(b[page*os.Getpagesize():(page+1)*os.Getpagesize()], make([]byte, os.Getpagesize()))
		must(t, os.WriteFile(filepath.Join(copied.dir, "metadata.db"), b, 0o600))
		if _, err := tank.Rebuild(context.Background(), copied.dir, nil); err != nil {
			t.Errorf("page %d: %v", page, err)
			continue
		}
		copied.after(t, true)
	}
}

// TestRebuildDamagedThings damages one blob or directory after the other. All others stay. The test
// is not parallel: a child process inherits a lock until it executes a program.
func TestRebuildDamagedThings(t *testing.T) {
	for _, db := range []string{"intact", "missing"} {
		r := newRebuildRoot(t, false)
		blobs, err := filepath.Glob(filepath.Join(r.dir, "blobs", "sha256", "*"))
		must(t, err)
		for _, blob := range blobs {
			copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), false}, r.refs, r.files}
			must(t, exec.Command("cp", "-a", r.dir, copied.dir).Run())
			bad := filepath.Join(copied.dir, "blobs", "sha256", filepath.Base(blob))
			must(t, errors.Join(os.Chmod(bad, 0o600), os.WriteFile(bad, []byte("damaged"), 0o600)))
			if db == "missing" {
				must(t, os.Remove(filepath.Join(copied.dir, "metadata.db")))
			}
			rebuilt, err := tank.Rebuild(context.Background(), copied.dir, nil)
			must(t, err)
			if rebuilt.Lost != 1 || rebuilt.Blobs != len(blobs)-1 {
				t.Errorf("database %s: %+v", db, rebuilt)
			}
			copied.with(t, func(tk *tank.Tank) {
				_, err := tk.GC(context.Background())
				must(t, err)
			})
			if missing := copied.lacks(t); len(missing) > 1 || len(missing) == 1 && missing[0] != filepath.Base(blob) {
				t.Errorf("database %s, damaged blob %.12s: lost %q", db, filepath.Base(blob), missing)
			}
			if lost, _ := filepath.Glob(filepath.Join(copied.dir, "lost", "*", "blob-"+filepath.Base(blob))); len(
				lost) != 1 {
				t.Errorf("database %s: the damaged blob is gone", db)
			}
			// A pull downloads only the damaged blob again.
			for _, ref := range copied.refs {
				if _, err := copied.pull(t, ref, nil); err != nil {
					t.Errorf("database %s: %v", db, err)
				}
			}
			copied.with(t,
				func(tk *tank.Tank) { must(t, tk.Check(context.Background(), func(f tank.Fault) { t.Error(f) })) })
		}
	}
}

// TestRebuildReleases shows that Release frees what a rebuild kept without a known holder.
func TestRebuildReleases(t *testing.T) {
	t.Parallel()
	for _, daemon := range []bool{false, true} {
		r := newRebuildRoot(t, daemon)
		must(t, os.Remove(filepath.Join(r.dir, "metadata.db")))
		must(t, os.Remove(filepath.Join(r.dir, "index.json")))
		must(t, os.Remove(filepath.Join(r.dir, "images.records")))
		rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
		must(t, err)
		want := map[bool]string{false: "rebuilt", true: "containerd"}[daemon]
		if rebuilt.Kept != want {
			t.Errorf("kept by %q", rebuilt.Kept)
		}
		r.with(t, func(tk *tank.Tank) {
			holders, err := tk.Holders(context.Background())
			must(t, err)
			if holders[0].Holder != want || holders[0].Blobs == 0 {
				t.Errorf("holders %+v", holders)
			}
			for _, h := range holders { // a containerd does not know layers: `rebuilt` has those
				_, err = tk.Release(context.Background(), h.Holder, &tank.ReleaseOptions{Force: true})
				must(t, err)
			}
		})
		if blobs, err := filepath.Glob(filepath.Join(r.dir, "blobs", "sha256", "[0-9a-f]*")); err != nil ||
			len(blobs) > 0 {
			t.Errorf("%d blobs after the release, %v", len(blobs), err)
		}
	}
}

// state is what a database has, apart from times.
func (r *rebuildRoot) state(t *testing.T) (records, holds []string) {
	t.Helper()
	db, err := metadata.Open(filepath.Join(r.dir, "metadata.db"), &metadata.Options{ReadOnly: true})
	must(t, err)
	must(t, db.View(func(tx *metadata.Tx) error {
		for _, k := range []metadata.Kind{
			metadata.KindBlob, metadata.KindLayer, metadata.KindRootfs, metadata.KindSnapshot,
		} {
			for _, key := range tx.Keys(k, "", -1) {
				records = append(records, string(k)+" "+key)
				for _, h := range tx.Holders(metadata.Node{Kind: k, Key: key}) {
					holds = append(holds, string(h)+" holds "+key)
				}
			}
		}
		for _, key := range tx.Keys(metadata.KindSnapshot, "", -1) {
			s, err := tx.Snapshot(key)
			if err != nil {
				return err
			}
			s.Updated = time.Time{}
			b, err := json.Marshal(s)
			if records = append(records, string(b)); err != nil {
				return err
			}
		}
		for _, b := range slices.Concat(metadata.ImageRecords(tx), metadata.BindingRecords(tx)) {
			records = append(records, string(b))
		}
		return nil
	}))
	must(t, db.Close())
	return records, holds
}

// TestRebuildIsTheSame loses the database, whole or one page after the other, and index.json with it. Afterwards all
// records are those of before, images without a rootfs and without some of their blobs, snapshots, bindings and
// holders included. No holder has lost anything. What nothing needs is held by a containerd, which drops it, or lapses.
func TestRebuildIsTheSame(t *testing.T) { // not parallel: a child inherits a lock until it executes a program
	for _, daemon := range []bool{false, true} {
		r := newRebuildRoot(t, daemon)
		second := metadata.ContainerdHolder("d1")
		if daemon {
			must(t, twoContainerds(r, second))
		}
		records, holds := r.state(t)
		pages := []int{-1}
		fi, err := os.Stat(filepath.Join(r.dir, "metadata.db"))
		must(t, err)
		for page := 0; daemon && page < int(fi.Size())/os.Getpagesize(); page++ {
			pages = append(pages, page)
		}
		for _, page := range pages {
			copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), daemon}, r.refs, r.files}
			must(t, exec.Command("cp", "-a", r.dir, copied.dir).Run())
			path := filepath.Join(copied.dir, "metadata.db")
			must(t, os.Remove(filepath.Join(copied.dir, "index.json")))
			if page < 0 {
				must(t, os.Remove(path))
			} else {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				must(t, err)
				_, err = f.WriteAt(make([]byte, os.Getpagesize()), int64(page*os.Getpagesize()))
				must(t, errors.Join(err, f.Close()))
			}
			found, err := tank.Rebuild(context.Background(), copied.dir, &tank.RebuildOptions{Unattended: true})
			must(t, err)
			if !found.Names || found.Lost > 0 || found.Kept != "" && !daemon {
				t.Errorf("page %d: %+v", page, found)
			}
			nowRecords, nowHolds := copied.state(t)
			if !slices.Equal(records, nowRecords) {
				t.Errorf("page %d: the records were\n%s\nand are\n%s", page, strings.Join(records, "\n"),
					strings.Join(nowRecords, "\n"))
			}
			for _, h := range holds {
				if !slices.Contains(nowHolds, h) {
					t.Errorf("page %d: %s no more", page, h)
				}
			}
			for _, h := range nowHolds {
				// A containerd gives up blobs that it does not know.
				known := daemon && strings.HasPrefix(h, "containerd") && strings.Contains(h, " holds sha256:")
				if !slices.Contains(holds, h) && !known {
					t.Errorf("page %d: now %s", page, h)
				}
			}
		}
	}
}

// twoContainerds binds two containerds to a daemon's root. The second has pulled a blob, and has a container whose
// key the first one could have chosen, too.
func twoContainerds(r *rebuildRoot, second metadata.Holder) error {
	tk, err := tank.Open(r.dir, &tank.Options{Existing: true})
	if err != nil {
		return err
	}
	ctx := context.Background()
	text := []byte("a blob of the second containerd")
	err = content.WriteBlob(ctx, tk.Content().For(second), "ref", bytes.NewReader(text),
		ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))})
	_, perr := tk.Snapshots().For(second).Prepare(ctx, "default/1/c", "")
	if err := errors.Join(err, perr, tk.Close()); err != nil {
		return err
	}
	db, err := metadata.Open(filepath.Join(r.dir, "metadata.db"), nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *metadata.Tx) error {
		return errors.Join(
			metadata.PutBinding(tx, metadata.Binding{ID: "d0", Holder: metadata.Containerd, Inode: 7}),
			metadata.PutBinding(tx, metadata.Binding{ID: "d1", Holder: second, Inode: 8, Path: "/x/meta.db"}))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if tk, err = tank.Open(r.dir, &tank.Options{Existing: true}); err != nil { // it writes bindings.records
		return err
	}
	return tk.Close()
}

// TestRebuildAgain rebuilds several times. No earlier database is overwritten, and a rebuild uses
// the one with the most records.
func TestRebuildAgain(t *testing.T) {
	t.Parallel()
	r := newRebuildRoot(t, false)
	path := filepath.Join(r.dir, "metadata.db")
	good, err := os.ReadFile(path)
	must(t, err)
	// The state that Tank 0.1.0 left: the good database renamed, an empty one in its place, and no image in index.json.
	must(t, os.WriteFile(path+".old", good, 0o600))
	must(t, os.Remove(path))
	empty, err := metadata.Open(path, nil)
	must(t, err)
	must(t, empty.Close())
	must(t, os.WriteFile(filepath.Join(r.dir, "index.json"), []byte(`{"schemaVersion":2,"manifests":[]}`), 0o600))
	rebuilt, err := tank.Rebuild(context.Background(), r.dir, nil)
	must(t, err)
	if rebuilt.Images != 2 {
		t.Errorf("%+v", rebuilt)
	}
	for _, content := range []string{"one", "two"} {
		must(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := tank.Rebuild(context.Background(), r.dir, nil)
		must(t, err)
	}
	var kept []string
	olds, err := filepath.Glob(path + ".old*")
	must(t, err)
	for _, old := range olds {
		b, err := os.ReadFile(old)
		must(t, err)
		kept = append(kept, string(b))
	}
	for _, want := range []string{string(good), "one", "two"} {
		if !slices.Contains(kept, want) {
			t.Errorf("%.10q was not kept", want)
		}
	}
	r.after(t, true)
}

// TestRebuildFullDisk rebuilds on a full file system. The former database stays, and another
// attempt succeeds once there is space.
func TestRebuildFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		skipUnlessCI(t, "needs root, to mount a file system")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		skipUnlessCI(t, "mount: "+err.Error())
	}
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	r := newRebuildRoot(t, false)
	dir := filepath.Join(disk, "root")
	must(t, exec.Command("cp", "-a", r.dir, dir).Run())
	must(t, os.RemoveAll(filepath.Join(dir, "reserve"))) // with it, the rebuild would succeed
	r.dir = dir
	path := filepath.Join(dir, "metadata.db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 4096), 5*4096)
	must(t, errors.Join(err, f.Close()))
	before, err := os.ReadFile(path)
	must(t, err)
	filler := filepath.Join(disk, "filler")
	for size := 1 << 20; size > 0; size /= 16 {
		for err = nil; err == nil; {
			err = appendTo(filler, size)
		}
	}
	if _, err := tank.Rebuild(context.Background(), dir, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the database was changed, %v", err)
	}
	if missing := r.lacks(t); len(missing) > 0 {
		t.Errorf("lost %q", missing)
	}
	must(t, os.Remove(filler))
	_, err = tank.Rebuild(context.Background(), dir, nil)
	must(t, err)
	r.after(t, true)
}

func appendTo(path string, size int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, f.Close())
}

// TestRebuildCrashes stops a rebuild before or after each of its changes. The database that is then in place is a
// former or a complete one, and another rebuild keeps what the root has.
func TestRebuildCrashes(t *testing.T) { // not parallel: a child inherits a lock until it executes a program
	r := newRebuildRoot(t, true)
	for name, row := range map[string]struct {
		damage func(root, blob string) error
		action string
	}{
		"missing": {func(root, _ string) error {
			return os.Remove(filepath.Join(root, "metadata.db"))
		}, "crash before"},
		"a damaged page, a damaged blob and index.json": {func(root, blob string) error {
			f, err := os.OpenFile(filepath.Join(root, "metadata.db"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(make([]byte, 4096), 5*4096)
			return errors.Join(err, f.Close(), os.WriteFile(filepath.Join(root, "index.json"), []byte("{"), 0o600),
				os.Chmod(blob, 0o600), os.WriteFile(blob, []byte("damaged"), 0o600))
		}, "crash after"},
	} {
		damaged := filepath.Join(t.TempDir(), "root")
		must(t, exec.Command("cp", "-a", r.dir, damaged).Run())
		blobs, err := filepath.Glob(filepath.Join(damaged, "blobs", "sha256", "*"))
		must(t, err)
		must(t, row.damage(damaged, blobs[0]))
		crashes := 0
		for _, op := range []string{
			"mkdir", "create", "write", "build", "commit", "link", "rename", "remove", "removetree", "syncdir",
		} {
			n := 1
			for r.crashes(t, damaged, fmt.Sprintf("%s #%d: %s", op, n, row.action), filepath.Base(blobs[0])) {
				n++
			}
			crashes += n - 1
		}
		if crashes < 4 {
			t.Errorf("%s: only %d crashes", name, crashes)
		}
	}
}

// crashes rebuilds a copy of a damaged root with a fault, and again without it. It reports whether the fault hit. The
// blob lost may be moved away.
func (r *rebuildRoot) crashes(t *testing.T, damaged, fault, lost string) (hit bool) {
	t.Helper()
	copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), true}, r.refs, r.files}
	must(t, exec.Command("cp", "-a", damaged, copied.dir).Run())
	fs := fsystest.New(t, copied.dir, fault)
	_, err := tank.Rebuild(context.Background(), copied.dir, &tank.RebuildOptions{FS: fs})
	if fs.Hits() == 0 {
		must(t, err)
		return false
	}
	tk, err := tank.Open(copied.dir, &tank.Options{Existing: true})
	switch {
	case err == nil:
		must(t, tk.Close())
	case !errdefs.IsDataLoss(err):
		t.Errorf("%s: %v", fault, err)
	}
	if _, err := tank.Rebuild(context.Background(), copied.dir, nil); err != nil {
		t.Errorf("%s: again: %v", fault, err)
	}
	copied.with(t, func(tk *tank.Tank) {
		_, err := tk.GC(context.Background())
		must(t, err)
	})
	if missing := copied.lacks(t); len(missing) > 1 || len(missing) == 1 && missing[0] != lost {
		t.Errorf("%s: lost %q\n%s", fault, missing, strings.Join(fs.History(), "\n"))
	}
	olds, err := filepath.Glob(filepath.Join(copied.dir, "metadata.db.old*"))
	must(t, err)
	if len(olds) > 2 {
		t.Errorf("%s: the former database has the names %q", fault, olds)
	}
	return true
}

// TestRebuildUnattended lists what a daemon must not take for the loss of a database: it may be the disk. An operator
// who asks for the rebuild gets it.
func TestRebuildUnattended(t *testing.T) { // not parallel: a child inherits a lock until it executes a program
	r := newRebuildRoot(t, true)
	empty := func(pool string) func(root string) error {
		return func(root string) error {
			dir := filepath.Join(root, pool)
			return errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, "lost+found"), 0o700))
		}
	}
	zero := func(root string) error { // a page that is not a meta page, so that most records can be read
		f, err := os.OpenFile(filepath.Join(root, "metadata.db"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(make([]byte, 4096), 2*4096)
		return errors.Join(err, f.Close())
	}
	remove := func(root string) error { return os.Remove(filepath.Join(root, "metadata.db")) }
	for name, row := range map[string]struct {
		damage  []func(root string) error
		refused bool
	}{
		"missing":                          {[]func(string) error{remove}, false},
		"a damaged page":                   {[]func(string) error{zero}, false},
		"missing, blobs not mounted":       {[]func(string) error{remove, empty("blobs")}, true},
		"damaged page, layers not mounted": {[]func(string) error{zero, empty("layers")}, true},
		"damaged page, snapshots as well":  {[]func(string) error{zero, empty("snapshots")}, true},
	} {
		copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), true}, r.refs, r.files}
		must(t, exec.Command("cp", "-a", r.dir, copied.dir).Run())
		for _, do := range row.damage {
			must(t, do(copied.dir))
		}
		before := copied.kept(t)
		_, err := tank.Rebuild(context.Background(), copied.dir, &tank.RebuildOptions{Unattended: true})
		if row.refused != errdefs.IsFailedPrecondition(err) || !row.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if row.refused {
			if after := copied.kept(t); !slices.Equal(before, after) {
				t.Errorf("%s: refused, but %q became %q", name, before, after)
			}
			if _, err := tank.Rebuild(context.Background(), copied.dir, nil); err != nil {
				t.Errorf("%s: for an operator: %v", name, err)
			}
		}
	}
}

// TestRebuildKilled kills a rebuild at many moments. One of the two databases is then in place, and
// another attempt succeeds.
func TestRebuildKilled(t *testing.T) { // not parallel: a child inherits a lock until it executes a program
	r := newRebuildRoot(t, true)
	path := filepath.Join(r.dir, "metadata.db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 4096), 5*4096)
	must(t, errors.Join(err, f.Close()))
	exe, err := os.Executable()
	must(t, err)
	for n := range 12 {
		copied := &rebuildRoot{&root{filepath.Join(t.TempDir(), "root"), true}, r.refs, r.files}
		must(t, exec.Command("cp", "-a", r.dir, copied.dir).Run())
		cmd := exec.Command(exe, "-test.run=^TestModesChild$")
		cmd.Env = []string{openEnv + "=root;rebuild;" + copied.dir, "TMPDIR=" + os.TempDir()}
		must(t, cmd.Start())
		time.Sleep(time.Duration(5+7*n) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		tk, err := tank.Open(copied.dir, &tank.Options{Existing: true})
		switch {
		case err == nil:
			must(t, tk.Close())
		case !errdefs.IsDataLoss(err):
			t.Errorf("killed after %d ms: %v", 5+7*n, err)
		}
		if _, err := tank.Rebuild(context.Background(), copied.dir, nil); err != nil {
			t.Errorf("killed after %d ms: again: %v", 5+7*n, err)
		}
		copied.after(t, true)
	}
}
