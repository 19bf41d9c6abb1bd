package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// halfImage serves an image with a layer of 8 MiB, of which the second half never comes.
func halfImage(t *testing.T) (ref string) {
	t.Helper()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, name := range strings.Split("abcdefgh", "") {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(data)
	}
	w.Close()
	reg := registrytest.New(t)
	layer := reg.Blob(ocispec.MediaTypeImageLayer, raw.Bytes())
	reg.Image("half", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})
	reg.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer.Digest.String()) {
			return false
		}
		_, _ = w.Write(raw.Bytes()[:raw.Len()/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	return reg.Host + "/hello:half"
}

// unpacking waits until the unpacking of a layer of the root has begun.
func unpacking(t *testing.T, root string) {
	t.Helper()
	for deadline := time.Now().Add(patienceOfTests); ; time.Sleep(10 * time.Millisecond) {
		if files, _ := filepath.Glob(root + "/layers/.*/*/b"); len(files) > 0 {
			return
		}
		if files, _ := filepath.Glob(root + "/layers/.*/b"); len(files) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no layer is unpacked")
		}
	}
}

// TestInterruptWhileBusy: Ctrl-C ends a command at once while it unpacks, and while it waits for another
// command, for a daemon or for the lock of the root. The next process can remove everything that it leaves.
func TestInterruptWhileBusy(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, root string) *exec.Cmd{
		"in an unpack": func(t *testing.T, root string) *exec.Cmd {
			cmd := command(t, nil, "pull", "--root", root, "--progress", "none", halfImage(t))
			begin(t, cmd)
			unpacking(t, root)
			return cmd
		},
		"waiting for another command": func(t *testing.T, root string) *exec.Cmd {
			ref := halfImage(t)
			begin(t, command(t, nil, "pull", "--root", root, "--progress", "none", ref))
			unpacking(t, root)
			cmd := command(t, nil, "pull", "--root", root, "--progress", "none", ref)
			begin(t, cmd)
			time.Sleep(300 * time.Millisecond)
			return cmd
		},
		"waiting for a daemon": func(t *testing.T, root string) *exec.Cmd {
			begin(t, command(t, nil, "serve", "--root", root, "--address", root+".sock"))
			for deadline := time.Now().Add(patienceOfTests); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(root + ".sock"); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("no daemon")
				}
			}
			cmd := command(t, nil, "pull", "--root", root, "--progress", "none", halfImage(t))
			begin(t, cmd)
			unpacking(t, root)
			return cmd
		},
		"waiting for the lock": func(t *testing.T, root string) *exec.Cmd {
			reg, _, _, _, _ := registry(t)
			if _, stderr, code := output(t, "pull", "--root", root, reg.Host+"/hello:1"); code != exitOK {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			lock, err := os.Open(root + "/lock")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lock.Close() })
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				t.Fatal(err)
			}
			cmd := command(t, nil, "images", "--root", root)
			begin(t, cmd)
			time.Sleep(300 * time.Millisecond)
			return cmd
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := filepath.Join(t.TempDir(), "root")
			cmd := start(t, root)
			began := time.Now()
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			stderr := cmd.Stderr.(*bytes.Buffer).String()
			if took := time.Since(began); took > endLimit || cmd.ProcessState.ExitCode() != 130 {
				t.Errorf("it took %s, %s: %s", took, cmd.ProcessState, stderr)
			}
			if !strings.Contains(stderr, "ended by signal: interrupt") || strings.Contains(stderr, "context canceled") {
				t.Errorf("it wrote %q", stderr)
			}
			if name != "in an unpack" {
				return
			}
			if _, stderr, code := output(t, "check", "--root", root); code != exitOK {
				t.Errorf("check: exit %d: %s", code, stderr)
			}
			if _, stderr, code := output(t, "gc", "--root", root); code != exitOK {
				t.Errorf("gc: exit %d: %s", code, stderr)
			}
			if left, _ := filepath.Glob(root + "/layers/.*"); len(left) > 0 {
				t.Errorf("the next processes left %v", left)
			}
		})
	}
}

// begin starts a command, which is killed at the end of the test if it still runs.
func begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = &bytes.Buffer{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
}

// TestInterruptedCopy: an interrupted command reports that the copy is incomplete.
func TestInterruptedCopy(t *testing.T) {
	e := &ending{}
	e.signal.Store(int32(syscall.SIGTERM))
	e.leaves("The copy in X is not complete: delete it.")
	if e.code() != 143 || !strings.HasSuffix(e.message(), "terminated\nThe copy in X is not complete: delete it.") {
		t.Errorf("%d, %q", e.code(), e.message())
	}
	if (&ending{}).code() != 0 {
		t.Error("a code without a signal")
	}
}
