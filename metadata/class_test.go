package metadata

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestClosed shows the class of the error that each way into a closed database returns, and that an error of the
// caller's function gets one too.
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
