package metadata

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
)

// TestClosed shows the class of the error that each method of a closed database returns, and that an error of the
// caller's function gets a class too.
func TestClosed(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "metadata.db"), &Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	fail := func(*Tx) error { return failed }
	for name, err := range map[string]error{"view": db.View(fail), "update": db.Update(fail), "batch": db.Batch(fail)} {
		if !errors.Is(err, failed) || err.Error() != "failed" || !errdefs.IsInternal(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fn := func(*Tx) error { return nil }
	_, deferred := db.UpdateDeferred(fn)
	for name, err := range map[string]error{
		"view": db.View(fn), "pending": db.ViewPending(fn), "committed": db.ViewCommitted(fn), "update": db.Update(fn),
		"batch": db.Batch(fn), "deferred": deferred, "probe": db.Probe(), "check": db.Check(func(Fault) {}),
	} {
		if !errdefs.IsUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFaults makes a database with a fault, an error or a crash, in each of the file operations in turn. Each error
// must have a class, and the next process makes a database without a fault.
func TestFaults(t *testing.T) {
	for name, do := range map[string]func(path string, opts *Options) error{
		"Open": func(path string, opts *Options) error {
			db, err := Open(path, opts)
			if err == nil {
				err = db.Close()
			}
			return err
		},
		"Build": func(path string, opts *Options) error {
			return Build(path, opts, func(*Tx) error { return nil })
		},
	} {
		for _, action := range []string{"fail EIO", "fail ENOSPC after", "crash", "crash during", "crash after"} {
			fsystest.Each(action, func(fault string) (hit bool) {
				t.Run(name+"/"+fault, func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "metadata.db")
					fs := fsystest.New(t, filepath.Dir(path), fault)
					err := do(path, &Options{FS: fs})
					hit = fs.Hits() > 0
					errclasstest.Check(t, fault, err)
					if _, lerr := os.Lstat(path); err == nil && lerr != nil {
						t.Errorf("no error, and no file: %v", lerr)
					}
					db, err := Open(path, nil)
					if err != nil {
						t.Fatalf("%v; history: %q", err, fs.History())
					}
					if err := errors.Join(db.Check(func(f Fault) { t.Error(f) }), db.Close()); err != nil {
						t.Error(err)
					}
				})
				return hit
			})
		}
	}
}
