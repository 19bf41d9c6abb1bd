package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/plugin/admin"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestFullDisk fills the disk of a root until no byte or no inode is left. Commands that add nothing work, by
// themselves and through a daemon. Commands that remove something free space, even if there is no reserve
// yet. Afterwards the root works as before, although the disk fills up again.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and in CI nothing may skip")
		}
		t.Skip("needs root")
	}
	image := func(size string, mkfs ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(t.TempDir(), "image")
			for _, args := range [][]string{
				{"truncate", "-s", size, path}, append(slices.Clone(mkfs), path), {"mount", "-o", "loop", path, dir},
			} {
				if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%q: %v: %s", args, err, out)
				}
			}
		}
	}
	tmpfs := func(options string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
				t.Fatal(err)
			}
		}
	}
	reg := registrytest.New(t)
	raw := greeting(t)
	layer := reg.Blob(ocispec.MediaTypeImageLayer, raw)
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})
	for name, mount := range map[string]func(t *testing.T, dir string){
		"tmpfs without bytes":  tmpfs("size=8m"),
		"tmpfs without inodes": tmpfs("size=8m,nr_inodes=200"),
		"ext4 without bytes":   image("24M", "mkfs.ext4", "-q", "-m", "0"),
		"ext4 without inodes":  image("24M", "mkfs.ext4", "-q", "-N", "256"),
		"xfs":                  image("310M", "mkfs.xfs", "-q"),
	} {
		for _, how := range []string{"alone", "alone in a root of an older version", "through a daemon"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				mount(t, dir)
				t.Cleanup(func() {
					if err := unix.Unmount(dir, 0); err != nil {
						t.Error(err, unix.Unmount(dir, unix.MNT_DETACH))
					}
				})
				root, ref := filepath.Join(dir, "root"), reg.Host+"/hello:1"
				does := func(args ...string) {
					t.Helper()
					out, text, code := output(t, append(args, "--root", root)...)
					if code != 0 {
						t.Errorf("%q: exit %d: %s %s", args, code, out, text)
					}
				}
				does("pull", "--progress", "none", ref)
				switch how {
				case "through a daemon":
					serveUntilEnd(t, root)
				case "alone in a root of an older version": // which has neither
					for _, file := range []string{"reserve", "tank-root"} {
						if err := os.RemoveAll(filepath.Join(root, file)); err != nil {
							t.Fatal(err)
						}
					}
				}
				for range 2 {
					fill(t, filepath.Join(dir, "filler"))
					for _, args := range [][]string{
						{"images"}, {"inspect", ref}, {"pull", "--offline", "--progress", "none", ref}, {"check"},
					} {
						does(args...)
					}
					does("rm", ref)
					does("gc")
					if err := os.RemoveAll(filepath.Join(dir, "filler")); err != nil {
						t.Fatal(err)
					}
					for deadline := time.Now().Add(10 * time.Second); reserve.Low(dir) && time.Now().Before(deadline); {
						time.Sleep(10 * time.Millisecond) // XFS frees the space of deleted files later
					}
					does("pull", "--progress", "none", ref)
					if _, err := os.Stat(filepath.Join(root, "reserve", "0")); err != nil {
						t.Errorf("a reserve after the disk was full: %v", err)
					}
				}
				does("check")
			})
		}
	}
}

// serveUntilEnd runs a daemon on the root until the test ends.
func serveUntilEnd(t *testing.T, root string) {
	t.Helper()
	cmd := command(t, nil, "serve", "--root", root, "--address", filepath.Join(t.TempDir(), "sock"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(root, admin.SocketName)); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not answer")
		}
	}
}

// fill makes dir and uses up all bytes and inodes of its disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for step := 1 << 20; step >= 512; step /= 8 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("bytes", step)))
		if err != nil {
			break
		}
		for err == nil {
			_, err = f.Write(make([]byte, step))
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil && !reserve.Full(err) {
			t.Fatal(err)
		}
	}
	for i := range 3000 { // more than any of these disks has, except the tmpfs that is to lack bytes
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return
		}
		f.Close()
	}
}
