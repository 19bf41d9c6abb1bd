package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/plugin/admin"
)

// reportLimit bounds the time until a command reports, on a busy machine, that a process does not answer.
const reportLimit = 8 * time.Second

// TestSilentDaemon: a command reports a stopped daemon instead of waiting for it, but waits for a busy one.
func TestSilentDaemon(t *testing.T) {
	t.Parallel()
	reg, _, _, held, _ := registry(t)
	d := startServe(t, nil, nil)
	d.serving(t, d.address())
	pull := command(t, nil, "pull", "--address", d.address(), "--progress", "none", reg.Host+"/hello:held")
	var stderr bytes.Buffer
	pull.Stderr = &stderr
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error, 1)
	go func() { pulled <- pull.Wait() }()
	for deadline := time.Now().Add(patienceOfTests); reg.Count(held.Encoded()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the pull does not request its layer")
		}
	}
	select {
	case err := <-pulled:
		t.Fatalf("the pull did not wait for a busy daemon: %v, %s", err, stderr.String())
	case <-time.After(5 * time.Second):
	}
	if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-pulled:
		if !strings.Contains(stderr.String(), "does not answer") {
			t.Errorf("the pull: %s", stderr.String())
		}
	case <-time.After(reportLimit):
		t.Error("the pull waits for a daemon that is stopped")
		_ = pull.Process.Kill()
	}
	t.Run("stopped", func(t *testing.T) {
		for _, args := range [][]string{{"--address", d.address()}, {"--root", filepath.Join(d.dir, "root")}} {
			t.Run(args[0], func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				_, stderr, code := output(t, append([]string{"images"}, args...)...)
				took := time.Since(began)
				if took > reportLimit || code != exitOther || !strings.Contains(stderr, "does not answer") {
					t.Errorf("after %s, exit code %d: %s", took, code, stderr)
				}
			})
		}
	})
	if err := d.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := output(t, "images", "--address", d.address()); code != 0 {
		t.Errorf("after SIGCONT: exit code %d: %s", code, stderr)
	}
}

// TestSilentListener: a command reports a socket on which no process accepts connections, and a lock without
// a socket.
func TestSilentListener(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(root string) error{
		"nobody accepts": func(root string) error {
			l, err := net.Listen("unix", filepath.Join(root, "other"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			return os.Rename(filepath.Join(root, "other"), filepath.Join(root, admin.SocketName))
		},
		"no socket": func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &squatter{}
			squat(t, s, os.Geteuid())
			if err := os.Remove(filepath.Join(s.root, admin.SocketName)); err != nil {
				t.Fatal(err)
			}
			if err := prepare(s.root); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, stderr, code := output(t, "images", "--root", s.root)
			if took := time.Since(began); took > reportLimit || code != exitOther || !strings.Contains(stderr, "own") {
				t.Errorf("after %s, exit code %d: %s", took, code, stderr)
			}
		})
	}
}
