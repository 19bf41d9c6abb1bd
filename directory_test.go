package tank_test

import (
	"errors"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
)

// TestDirectory opens one root in both modes. A container above a committed snapshot gets its own
// directory in directory mode and an overlay mount in overlay mode.
func TestDirectory(t *testing.T) {
	root := t.TempDir()
	for _, row := range []struct {
		directory bool
		want      string
	}{{true, "bind"}, {false, "overlay"}, {true, "bind"}} {
		tk, err := tank.Open(root, &tank.Options{Daemon: true, Directory: row.directory})
		if err != nil {
			t.Fatal(err)
		}
		sn := tk.Snapshots().For(metadata.Containerd)
		if _, err := sn.Stat(t.Context(), "parent"); err != nil {
			_, perr := sn.Prepare(t.Context(), "active", "")
			if err := errors.Join(perr, sn.Commit(t.Context(), "parent", "active")); err != nil {
				t.Fatal(err)
			}
		}
		mounts, err := sn.Prepare(t.Context(), "container", "parent")
		if err != nil {
			t.Fatal(err)
		}
		if len(mounts) != 1 || mounts[0].Type != row.want {
			t.Errorf("directory %t: %v", row.directory, mounts)
		}
		if err := errors.Join(sn.Remove(t.Context(), "container"), tk.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
