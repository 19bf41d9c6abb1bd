package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/plugin/admin"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestServeRebuilds damages the database of a daemon that does not run. A command refuses the root, and changes
// nothing. The next daemon makes the database again, keeps the service manager informed, logs what it did, and serves
// the image. If a pool is not mounted, the daemon refuses as well.
func TestServeRebuilds(t *testing.T) {
	reg := registrytest.New(t)
	tar := unpacktest.Tar(t, unpacktest.F("a", "hello"))
	layer := reg.Blob(ocispec.MediaTypeImageLayerGzip, unpacktest.Gzip(t, tar))
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{digest.FromBytes(tar)})
	ref := reg.Host + "/x:1"
	whole := filepath.Join(t.TempDir(), "root")
	pulled, err := tank.Open(whole, &tank.Options{Daemon: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = pulled.Pull(t.Context(), ref, nil)
	if err := errors.Join(err, pulled.Close()); err != nil {
		t.Fatal(err)
	}
	database := func(root string) string { return filepath.Join(root, "metadata.db") }
	for _, row := range []struct {
		name   string
		damage func(root string) error
		logs   []string // that the daemon wrote
		served bool
	}{
		{"missing", func(root string) error { return os.Remove(database(root)) },
			[]string{"the file is missing", "the database was made again", "images=1"}, true},
		{"empty", func(root string) error { return os.Truncate(database(root), 0) },
			[]string{"the file is empty", "the database was made again"}, true},
		{"cut", func(root string) error { return os.Truncate(database(root), 9000) },
			[]string{"the database was made again", "metadata.db.old"}, true},
		{"zeroed", func(root string) error {
			fi, err := os.Stat(database(root))
			if err != nil {
				return err
			}
			return os.WriteFile(database(root), make([]byte, fi.Size()), 0o600)
		}, []string{"the database was made again", "metadata.db.old"}, true},
		{"missing and blobs not mounted", func(root string) error {
			blobs := filepath.Join(root, "blobs")
			return errors.Join(os.Remove(database(root)), os.RemoveAll(blobs), os.Mkdir(blobs, 0o700))
		}, []string{"may not be mounted", "check --rebuild --root"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			if err := errors.Join(exec.Command("cp", "-a", whole, root).Run(), row.damage(root)); err != nil {
				t.Fatal(err)
			}
			if _, err := tank.Open(root, nil); !errdefs.IsDataLoss(err) {
				t.Errorf("without a daemon: %v", err)
			}
			socket := filepath.Join(t.TempDir(), "notify.sock")
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			heard := listen(manager)
			d := startServe(t, []string{"NOTIFY_SOCKET=" + socket}, nil, "--root", root)
			if row.served {
				d.serving(t, d.address())
				found, err := admin.Dial(t.Context(), d.address(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := found.Inspect(t.Context(), ref); err != nil {
					t.Errorf("the image: %v", err)
				}
				found.Close()
				if code := d.stop(t, syscall.SIGTERM); code != 0 {
					t.Errorf("exit code %d", code)
				}
			} else if code := d.wait(t); code == 0 {
				t.Error("the daemon served")
			}
			if err := manager.Close(); err != nil {
				t.Error(err)
			}
			text := <-heard
			for _, want := range []string{"EXTEND_TIMEOUT_USEC=120000000", "STATUS=Making the database again: "} {
				if !strings.Contains(text, want) {
					t.Errorf("the service manager heard %q, not %q", text, want)
				}
			}
			for _, want := range row.logs {
				if !strings.Contains(d.stderr.String(), want) {
					t.Errorf("no %q in the log:\n%s", want, d.stderr)
				}
			}
		})
	}
}

// listen reads what a service manager receives until it is closed, and then sends that.
func listen(manager *net.UnixConn) <-chan string {
	heard := make(chan string, 1)
	go func() {
		var text strings.Builder
		b := make([]byte, 4096)
		for {
			n, err := manager.Read(b)
			if err != nil {
				heard <- text.String()
				return
			}
			text.Write(append(b[:n], '\n'))
		}
	}()
	return heard
}
