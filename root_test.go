package tank_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// tree makes files below dir. A name that ends with a slash is a directory, a name with an arrow a
// symbolic link.
func tree(t *testing.T, dir string, files ...string) {
	t.Helper()
	for _, file := range files {
		name, content, _ := strings.Cut(file, "=")
		link, target, isLink := strings.Cut(file, " -> ")
		path := filepath.Join(dir, name)
		switch {
		case isLink:
			must(t, os.Symlink(target, filepath.Join(dir, link)))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o700))
		default:
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.WriteFile(path, []byte(content), 0o600))
		}
	}
}

// snapshotOf lists everything below dir with all attributes that a program could change, times
// included.
func snapshotOf(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// a root's, whose content is garbage
		if e.Name() == "staging" && e.IsDir() && path != filepath.Join(dir, "dir/staging") {
			return fs.SkipDir
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprint(path, fi.Mode(), fi.Size(), fi.ModTime())
		if fi.Mode().IsRegular() && fi.Size() < 1<<20 {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += string(b)
		}
		lines = append(lines, line)
		return nil
	}))
	return lines
}

// changes lists the lines in which two listings differ, each cut to 200 bytes.
func changes(before, after []string) string {
	var lines []string
	for _, side := range []struct {
		sign      string
		has, lack []string
	}{{"-", before, after}, {"+", after, before}} {
		for _, l := range side.has {
			if !slices.Contains(side.lack, l) {
				lines = append(lines, fmt.Sprintf("%s %.200q", side.sign, l))
			}
		}
	}
	return strings.Join(lines, "\n")
}

var allDirs = []string{"blobs/sha256/", "ingest/", "layers/", "rootfs/sha256/", "snapshots/", "staging/"}

// TestForeignDirectories shows that every way of opening a directory that is no root is refused and
// changes nothing.
func TestForeignDirectories(t *testing.T) {
	t.Parallel()
	const layout = `{"imageLayoutVersion":"1.0.0"}`
	for _, row := range []struct {
		name  string
		files []string
	}{
		{"OCI layout",
			[]string{"oci-layout=" + layout, `index.json={"schemaVersion":2,"manifests":[]}`, "blobs/sha256/aa=blob"}},
		{"project", []string{"staging/mine=1", "index.json=[]", "go.mod=module x", "rootfs/"}},
		{"etc", []string{"passwd=root", "os-release=x", "ssh/sshd_config=y"}},
		{"home", []string{".bashrc=1", ".cache/x=1", "Documents/"}},
		{"docker", []string{"overlay2/l/", "image/overlay2/repositories.json={}", "containers/",
			"volumes/metadata.db=x"}},
		{"containerd",
			[]string{"io.containerd.metadata.v1.bolt/meta.db=x", "io.containerd.content.v1.content/blobs/sha256/a=1"}},
		{"lock alone", []string{"lock=1234\n"}},
		{"empty lock", []string{"lock="}},
		{"lock of another program", append([]string{"lock=pid 77\n", "index.json=[]"}, allDirs...)},
		{"Tank's directories alone", allDirs},
		{"database of another program", append([]string{"metadata.db=SQLite format 3"}, allDirs...)},
		{"lost+found and more", []string{"lost+found/", "data=1"}},
		{"hidden file", []string{".keep="}},
		{"damaged mark", []string{"tank-root=tank"}},
		{"empty mark", []string{"tank-root="}},
		{"newer mark", []string{"tank-root=tank root 2\n"}},
		{"mark of nobody", []string{"tank-root=tank root 0\n"}},
		{"mark as a link", []string{"elsewhere=tank root 1\n", "tank-root -> elsewhere"}},
		{"privileged lock in a project", []string{"lock=privileged\n", "main.go=x", "staging/"}},
	} {
		dir := filepath.Join(t.TempDir(), "dir")
		must(t, os.Mkdir(dir, 0o700))
		tree(t, dir, row.files...)
		refused(t, row.name, dir, errdefs.ErrFailedPrecondition)
	}
}

// refused opens the directory in every way. Each must fail with an error of class and change
// nothing.
func refused(t *testing.T, name, dir string, class error) {
	t.Helper()
	before := snapshotOf(t, filepath.Dir(dir))
	ways := map[string]func() error{
		"rebuild": func() error { _, err := tank.Rebuild(context.Background(), dir, nil); return err },
	}
	for _, o := range []tank.Options{{}, {Daemon: true}, {Existing: true}, {Existing: true, AllowReadOnly: true}} {
		ways[fmt.Sprintf("%+v", o)] = func() error {
			tk, err := tank.Open(dir, &o)
			if err == nil {
				tk.Close()
			}
			return err
		}
	}
	for way, try := range ways {
		if err := try(); !errors.Is(err, class) {
			t.Errorf("%s, %s: %v", name, way, err)
		}
		if diff := changes(before, snapshotOf(t, filepath.Dir(dir))); diff != "" {
			t.Errorf("%s, %s: the directory was changed:\n%s", name, way, diff)
		}
	}
}

// TestPlanted opens roots in which another user has replaced a file. Each is refused: Tank neither
// follows the file, nor waits for it, nor changes it.
func TestPlanted(t *testing.T) {
	t.Parallel()
	in := func(path string) func(dir string) string {
		return func(dir string) string { return filepath.Join(dir, path) }
	}
	replace := func(path string, with func(string) error) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			p := in(path)(dir)
			must(t, os.RemoveAll(p))
			must(t, with(p))
		}
	}
	link := func(to string) func(string) error {
		return func(p string) error {
			return os.Symlink(filepath.Join(filepath.Dir(p), strings.Repeat("../", 3)+"tmp", to), p)
		}
	}
	fifo := func(p string) error { return unix.Mkfifo(p, 0o600) }
	huge := func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)) }
	elsewhere := func(p string) error {
		dir := filepath.Join(filepath.Dir(filepath.Dir(p)), "elsewhere")
		return errors.Join(os.MkdirAll(filepath.Join(dir, "precious"), 0o700), os.Symlink(dir, p))
	}
	type row struct {
		name  string
		plant func(*testing.T, string)
		class error
	}
	rows := []row{
		{"root writable by all", func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o777)) },
			errdefs.ErrFailedPrecondition},
		{"root writable by the group", func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o770)) },
			errdefs.ErrFailedPrecondition},
		{"lock as a FIFO", replace("lock", fifo), errdefs.ErrFailedPrecondition},
		{"lock of 1 TB", replace("lock", huge), errdefs.ErrFailedPrecondition},
		{"lock as a link", replace("lock", link("x")), errdefs.ErrFailedPrecondition},
		{"lock as a hard link", replace("lock", func(p string) error {
			other := filepath.Join(filepath.Dir(filepath.Dir(p)), "precious")
			return errors.Join(os.WriteFile(other, []byte("precious"), 0o600), os.Link(other, p))
		}), errdefs.ErrFailedPrecondition},
		{"lock writable by all", func(t *testing.T, dir string) { must(t, os.Chmod(in("lock")(dir), 0o666)) },
			errdefs.ErrFailedPrecondition},
		{"database writable by all",
			func(t *testing.T, dir string) { must(t, os.Chmod(in("metadata.db")(dir), 0o666)) },
			errdefs.ErrFailedPrecondition},
		{"database as a FIFO", replace("metadata.db", fifo), errdefs.ErrDataLoss},
		{"database of 1 TB", replace("metadata.db", huge), errdefs.ErrDataLoss},
		{"database as a link", replace("metadata.db", link("x")), errdefs.ErrDataLoss},
		{"mark as a FIFO", replace("tank-root", fifo), errdefs.ErrFailedPrecondition},
		{"mark of 1 TB", replace("tank-root", huge), errdefs.ErrFailedPrecondition},
	}
	for _, dir := range []string{"blobs", "blobs/sha256", "ingest", "layers", "rootfs", "rootfs/sha256", "snapshots",
		"staging", "lost"} {
		rows = append(rows,
			row{dir + " as a link", replace(dir, elsewhere), errdefs.ErrFailedPrecondition},
			row{dir + " as a file", replace(dir, func(p string) error { return os.WriteFile(p, nil, 0o600) }),
				errdefs.ErrFailedPrecondition},
			row{dir + " writable by all", func(t *testing.T, root string) {
				must(t, os.MkdirAll(filepath.Join(root, dir), 0o700))
				must(t, os.Chmod(filepath.Join(root, dir), 0o707))
			}, errdefs.ErrFailedPrecondition})
	}
	if os.Geteuid() == 0 {
		rows = append(rows,
			row{"root of another user", func(t *testing.T, dir string) { must(t, os.Lchown(dir, 4711, 4711)) },
				errdefs.ErrFailedPrecondition},
			row{"lock of another user", func(t *testing.T, dir string) { must(t, os.Lchown(in("lock")(dir), 4711, 0)) },
				errdefs.ErrFailedPrecondition},
			row{"database of another user",
				func(t *testing.T, dir string) { must(t, os.Lchown(in("metadata.db")(dir), 4711, 0)) },
				errdefs.ErrFailedPrecondition},
			row{"layers of another user",
				func(t *testing.T, dir string) { must(t, os.Lchown(in("layers")(dir), 4711, 0)) },
				errdefs.ErrFailedPrecondition})
	}
	for _, r := range rows {
		dir := filepath.Join(t.TempDir(), "root")
		tk, err := tank.Open(dir, nil)
		must(t, err)
		must(t, tk.Close())
		r.plant(t, dir)
		before := snapshotOf(t, filepath.Dir(dir))
		for _, o := range []tank.Options{{}, {Existing: true, AllowReadOnly: true}} {
			tk, err := tank.Open(dir, &o)
			if err == nil {
				tk.Close()
			}
			if !errors.Is(err, r.class) {
				t.Errorf("%s, %+v: %v", r.name, o, err)
			}
		}
		if diff := changes(before, snapshotOf(t, filepath.Dir(dir))); diff != "" {
			t.Errorf("%s: changed:\n%s", r.name, diff)
		}
	}
	dir := filepath.Join(t.TempDir(), "root")
	for name, plant := range map[string]func() error{
		"a file":            func() error { return os.WriteFile(dir, []byte("x"), 0o600) },
		"a link to nothing": func() error { return os.Symlink(dir+".x", dir) },
		"a link to a directory": func() error {
			return errors.Join(os.Mkdir(dir+".x", 0o700), os.Symlink(dir+".x", dir))
		},
	} {
		must(t, os.RemoveAll(dir))
		must(t, os.RemoveAll(dir+".x"))
		must(t, plant())
		refused(t, name, dir, errdefs.ErrFailedPrecondition)
	}
}

// TestMakeRoot shows from which directories Open makes a root, and which callers make none.
func TestMakeRoot(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		files []string
	}{
		{"missing", nil},
		{"empty", []string{"./"}},
		{"only lost+found", []string{"lost+found/"}},
		{"a mark that was not finished", []string{"tank-root.123="}},
		{"a mark and nothing else", []string{"tank-root=tank root 1\n"}},
		{"a mark and a database that was not finished",
			[]string{"tank-root=tank root 1\n", "lock=", "metadata.db.new=x"}},
		{"an unfinished root of 0.1.0", []string{"lock=LOCK"}},
		{"an unfinished root of 0.1.0 with directories", append([]string{"lock=LOCK", "metadata.db.new="}, allDirs...)},
	} {
		dir := filepath.Join(t.TempDir(), "dir")
		if row.files != nil {
			must(t, os.Mkdir(dir, 0o700))
			for i, f := range row.files {
				row.files[i] = strings.ReplaceAll(f, "LOCK", lockLine(t))
			}
			tree(t, dir, row.files...)
		}
		before := snapshotOf(t, filepath.Dir(dir))
		for _, o := range []tank.Options{{Existing: true, AllowReadOnly: true}, {Existing: true}} {
			if _, err := tank.Open(dir, &o); !errors.Is(err, tank.ErrNoRoot) || !errdefs.IsNotFound(err) {
				t.Errorf("%s, %+v: %v", row.name, o, err)
			}
			if diff := changes(before, snapshotOf(t, filepath.Dir(dir))); row.files == nil && diff != "" {
				t.Errorf("%s, %+v: a root was made", row.name, o)
			}
		}
		for range 2 {
			tk, err := tank.Open(dir, nil)
			if err != nil {
				t.Errorf("%s: %v", row.name, err)
				break
			}
			must(t, tk.Close())
		}
		if b, err := os.ReadFile(filepath.Join(dir, "tank-root")); string(b) != "tank root 1\n" {
			t.Errorf("%s: mark %q, %v", row.name, b, err)
		}
	}
}

// lockLine returns the content of the lock file of a root that this process makes.
func lockLine(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	tk, err := tank.Open(dir, nil)
	must(t, err)
	must(t, tk.Close())
	b, err := os.ReadFile(filepath.Join(dir, "lock"))
	must(t, err)
	return string(b)
}

// TestRootOfFirst opens roots of Tank 0.1.0. They get a mark. The loss of their database is
// detected even so.
func TestRootOfFirst(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	for _, row := range []struct {
		name string
		lose []string
		want error
	}{
		{"whole", nil, nil},
		{"without its lock", []string{"lock"}, nil},
		{"without index.json", []string{"index.json", "oci-layout"}, nil},
		{"without its database", []string{"metadata.db"}, errdefs.ErrDataLoss},
		{"without database and index", []string{"metadata.db", "index.json"}, errdefs.ErrDataLoss},
		{"with a damaged mark", nil, nil},
	} {
		r := newRoot(t, false)
		_, err := r.pull(t, reg.Host+"/x:1", nil)
		must(t, err)
		must(t, os.Remove(filepath.Join(r.dir, "tank-root")))
		must(t, os.MkdirAll(filepath.Join(r.dir, "staging"), 0o700)) // a directory of 0.1.0
		if row.name == "with a damaged mark" {
			must(t, os.WriteFile(filepath.Join(r.dir, "tank-root"), []byte("\x00\x00"), 0o600))
		}
		for _, name := range row.lose {
			must(t, os.Remove(filepath.Join(r.dir, name)))
		}
		tk, err := tank.Open(r.dir, &tank.Options{Existing: true})
		if !errors.Is(err, row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
		if err == nil {
			must(t, tk.Close())
		}
		if b, err := os.ReadFile(filepath.Join(r.dir, "tank-root")); string(b) != "tank root 1\n" {
			t.Errorf("%s: mark %q, %v", row.name, b, err)
		}
		if row.want != nil {
			_, err := tank.Rebuild(context.Background(), r.dir, nil)
			must(t, err)
		}
	}
}

// TestDatabaseLost shows that nothing is made, collected or rewritten in a root whose database is
// missing or another one.
func TestDatabaseLost(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	record := func(bucket string) func(string) error {
		return func(path string) error {
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			defer db.Close()
			return db.Update(func(tx *bolt.Tx) error {
				b := tx.Bucket([]byte(bucket))
				k, _ := b.Cursor().First()
				return b.Put(slices.Clone(k), []byte("{"))
			})
		}
	}
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, 3*4096) },
		"zeros":   func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
		"of another program": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			return db.Close()
		},
		"record of the image":  record("images"),
		"record of the rootfs": record("rootfs"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, daemon := range []bool{false, true} {
				dir := filepath.Join(t.TempDir(), "root")
				tk, err := tank.Open(dir, &tank.Options{Daemon: daemon})
				must(t, err)
				_, err = tk.Pull(context.Background(), reg.Host+"/x:1", nil)
				must(t, errors.Join(err, tk.Close(), damage(filepath.Join(dir, "metadata.db"))))
				// Without the root's own time: Open tries out its file system.
				before := snapshotOf(t, dir)[1:]
				for _, o := range []tank.Options{{}, {Daemon: true}, {Existing: true},
					{Existing: true, AllowReadOnly: true}} {
					tk, err := tank.Open(dir, &o)
					if err == nil {
						tk.Close()
					}
					if !errdefs.IsDataLoss(err) {
						t.Errorf("daemon=%v, %+v: %v", daemon, o, err)
					}
				}
				if diff := changes(before, snapshotOf(t, dir)[1:]); diff != "" {
					t.Errorf("daemon=%v: changed:\n%s", daemon, diff)
				}
			}
		})
	}
}

// TestFirstOpeners has many callers open a new root at once. One becomes the owner, and the others
// get the error for an owned root.
func TestFirstOpeners(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "root")
	errs := make(chan error)
	start, stop := make(chan struct{}), make(chan struct{})
	for range 8 {
		go func() {
			<-start
			tk, err := tank.Open(dir, nil)
			errs <- err
			if err == nil {
				<-stop
				tk.Close()
			}
		}()
	}
	close(start)
	owners := 0
	for range 8 {
		switch err := <-errs; {
		case err == nil:
			owners++
		case !errdefs.IsUnavailable(err):
			t.Error(err)
		}
	}
	close(stop)
	if owners != 1 {
		t.Errorf("%d owners", owners)
	}
}
