package rootlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/internal/idmap"
)

// TestTake: a root is made once, owned by one at a time, and remembers that it is a daemon's.
func TestTake(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	if _, err := Take(root, nil); !errors.Is(err, ErrNoRoot) || IsRoot(root) {
		t.Errorf("a missing directory: %v, a root: %v", err, IsRoot(root))
	}
	l, err := Take(root, &Options{Make: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Take(root, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("a root that is owned: %v", err)
	}
	if unused, err := l.Unused(); !unused || err != nil || l.Daemon() || l.ReadOnly() || !IsRoot(root) {
		t.Errorf("a new root: unused %v, %v, daemon %v, read-only %v", unused, err, l.Daemon(), l.ReadOnly())
	}
	if err := errors.Join(l.MarkDaemon(), l.MarkDaemon(), l.Sync(), l.Close()); err != nil {
		t.Error(err)
	}
	if l, err = Take(root, nil); err != nil || !l.Daemon() {
		t.Fatalf("a daemon's root: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "layers", "1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if unused, err := l.Unused(); unused || err != nil {
		t.Errorf("a root with a layer: unused %v, %v", unused, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestCrash stops the machine at every operation of the making of a root, and makes the root then.
func TestCrash(t *testing.T) {
	for n := 1; ; n++ {
		root := filepath.Join(t.TempDir(), "root")
		fs := fsystest.New(t, root, fmt.Sprintf("any #%d: crash after", n))
		l, err := Take(root, &Options{Make: true, FS: fs})
		if err == nil {
			if err := errors.Join(l.MarkDaemon(), l.Close()); (err == nil) == (fs.Hits() > 0) {
				t.Errorf("operation %d: %v after %d faults", n, err, fs.Hits())
			}
		}
		next, err := Take(root, &Options{Make: true})
		if err != nil {
			t.Errorf("operation %d: %v", n, err)
			break
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		if names, err := namesIn(root); err != nil || !slices.Equal(names, []string{"lock", "tank-root"}) {
			t.Errorf("operation %d: left %q, %v", n, names, err)
		}
		if fs.Hits() == 0 {
			break
		}
	}
}

// TestMakeAtOnce: another process makes the root and opens it, while this one writes its mark.
func TestMakeAtOnce(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	fs := fsystest.New(t, root)
	fs.Before("rename", "tank-root", func(string) {
		other, err := Take(root, &Options{Make: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := Take(root, &Options{Make: true, FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestAccess: an access is read as it was written, and continues that of a namespace which has got
// more ids.
func TestAccess(t *testing.T) {
	ids := idmap.Map{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}
	for _, a := range []Access{
		{by: privileged}, {by: withoutCaps}, {by: "uid 1000"}, {userNS, ids, ids}, {oneID, ids[:1], ids[:1]},
	} {
		got, err := parseAccess(a.String())
		if err != nil || got.String() != a.String() || !got.known() || !a.continues(got) {
			t.Errorf("%q is read as %q: %v", a, got, err)
		}
		for _, other := range []Access{{by: "uid 1001"}, {userNS, ids[:1], ids}} {
			if other.continues(a) {
				t.Errorf("%q continues %q", other, a)
			}
		}
	}
	if more := (Access{userNS, ids, ids}); !more.continues(Access{userNS, ids[:1], ids[:1]}) {
		t.Error("a namespace that has got more ids is refused")
	}
	if (Access{by: "uid -1"}).known() || (Access{by: "LOCK"}).known() {
		t.Error("an unknown access is known")
	}
}
