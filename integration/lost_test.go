package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestContainersOutliveDatabase loses metadata.db under running and stopped containers. The daemon that starts next
// makes it again. The containers go on; they can be stopped, started again and removed; containers of the image start,
// images are pulled; and containerd's collector removes nothing that is needed.
func TestContainersOutliveDatabase(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		damage func(path string) error
	}{
		{"removed", os.Remove},
		{"zeroed", func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			fi, err := f.Stat()
			if err == nil {
				_, err = f.WriteAt(make([]byte, fi.Size()-8192), 8192) // all but the two meta pages
			}
			return errors.Join(err, f.Close())
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k, c, r := e.NewNode()
			img, _ := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
			other, _ := smallImage(t, []Entry{file("etc/other", 0o644, "other\n")})
			r.PushBuilt(img, "test/kept:1")
			r.PushBuilt(other, "test/other:1")
			ref, otherRef := TestRegistry+"/test/kept:1", TestRegistry+"/test/other:1"
			c.Pull(ref)
			running := c.startContainers(t, 2, ref)
			running.checkAlive(t, "before")
			stopped := e.Name("stopped")
			c.RunDetached(ref, stopped, "/usr/bin/hello", "live", "/tmp/written")
			c.Ctr("tasks", "rm", "--force", stopped)

			k.Daemon().Kill9()
			if err := row.damage(filepath.Join(k.Root, "metadata.db")); err != nil {
				t.Fatal(err)
			}
			k.Serve()
			if log := string(tail(k.Daemon().Log, 20000)); !strings.Contains(log, "the database was made again") {
				t.Errorf("the log does not say that the database was made again:\n%s", log)
			}
			c.AwaitPlugin()
			running.checkAlive(t, "after the loss")
			c.checkHello(t, "a new container", ref)
			c.Ctr("tasks", "start", "--detach", stopped)
			c.Pull(otherRef)
			c.checkHello(t, "another image", otherRef)
			c.RemoveImage(otherRef) // containerd's collector runs
			running.checkAlive(t, "after a collection")
			running.checkTasks(t, "after a collection")
			c.checkHello(t, "after a collection", ref)
			c.RemoveContainer(stopped)
			running.remove(t)
			c.RemoveImage(ref)
			k.Daemon().Stop()
			if out := k.Run("check"); out.Code != 0 {
				t.Errorf("check: %s", out)
			}
		})
	}
}
