package tank_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// readOnlyMount mounts dir read-only at another path.
func readOnlyMount(t *testing.T, dir string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		skipUnlessCI(t, "needs root, to mount")
	}
	at := t.TempDir()
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		skipUnlessCI(t, "mount: "+err.Error())
	}
	t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
	must(t, unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	return at
}

// TestReadOnlyRoot shows that read-only roots can be read, including a root of Tank 0.1.0 and a
// root with provisional records, and that nothing changes.
func TestReadOnlyRoot(t *testing.T) {
	reg := registrytest.New(t)
	push(t, reg, "1", base)
	ref := reg.Host + "/x:1"
	ctx := context.Background()
	for _, row := range []struct {
		name    string
		options *tank.PullOptions
		daemon  bool
		prepare func(dir string) error
		cached  bool // an offline pull succeeds
	}{
		{"a root", nil, false, nil, true},
		{"a daemon's root", nil, true, nil, true},
		{"provisional", &tank.PullOptions{NoSync: true}, false, nil, true},
		{"without a rootfs", &tank.PullOptions{NoRootfs: true}, false, nil, false},
		{"of 0.1.0", nil, false, func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "tank-root")),
				os.MkdirAll(filepath.Join(dir, "staging"), 0o700))
		}, true},
		{"without index.json", nil, false,
			func(dir string) error { return os.Remove(filepath.Join(dir, "index.json")) }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "root")
			tk, err := tank.Open(dir, &tank.Options{Daemon: row.daemon})
			must(t, err)
			_, err = tk.Pull(ctx, ref, row.options)
			must(t, errors.Join(err, tk.Close()))
			if row.prepare != nil {
				must(t, row.prepare(dir))
			}
			before := snapshotOf(t, dir)
			at := readOnlyMount(t, dir)
			for _, o := range []tank.Options{{}, {Existing: true}, {Daemon: true}} {
				if tk, err := tank.Open(at, &o); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%+v: %v", o, err)
					if err == nil {
						tk.Close()
					}
				}
			}
			if _, err := tank.Rebuild(ctx, at, nil); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("rebuild: %v", err)
			}
			o := &tank.Options{Existing: true, AllowReadOnly: true}
			beside, err := tank.Open(at, o) // readers share the root
			must(t, err)
			tk, err = tank.Open(at, o)
			must(t, err)
			if !tk.ReadOnly() {
				t.Error("the root does not report that it is read-only")
			}
			if infos, err := tk.Images(ctx); err != nil || len(infos) != 1 {
				t.Errorf("images %v, %v", infos, err)
			}
			if _, err := tk.Inspect(ctx, ref); err != nil {
				t.Error(err)
			}
			if _, err := tk.Holders(ctx); err != nil {
				t.Error(err)
			}
			must(t, tk.Check(ctx, func(f tank.Fault) { t.Error(f) }))
			img, err := tk.Pull(ctx, ref, &tank.PullOptions{Offline: true})
			switch {
			case row.cached && err != nil:
				t.Error(err)
			case row.cached:
				list(t, img.Rootfs)
			case !errdefs.IsNotFound(err):
				t.Errorf("pull that must assemble a rootfs: %v", err)
			}
			for what, err := range map[string]error{
				"remove": tk.Remove(ctx, ref),
				"gc":     func() error { _, err := tk.GC(ctx); return err }(),
				"pull":   func() error { _, err := tk.Pull(ctx, ref, &tank.PullOptions{Refresh: true}); return err }(),
			} {
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("%s: %v", what, err)
				}
			}
			must(t, errors.Join(tk.Close(), beside.Close()))
			if diff := changes(before, snapshotOf(t, dir)); diff != "" {
				t.Errorf("changed:\n%s", diff)
			}
		})
	}
}
