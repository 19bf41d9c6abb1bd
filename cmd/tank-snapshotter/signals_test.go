package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// silentPipe makes a pipe with a writer that never writes.
func silentPipe(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
}

// endLimit bounds the time from a signal to the end of the process: endWithin, and more for a busy machine.
const endLimit = endWithin + 850*time.Millisecond

// TestOneSignalEnds: the first signal ends a command, whatever the command does.
func TestOneSignalEnds(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, dir string) *exec.Cmd{
		"reading the config": func(t *testing.T, dir string) *exec.Cmd {
			silentPipe(t, dir+"/config")
			return command(t, nil, "images", "--root", dir+"/root", "--config", dir+"/config")
		},
		"starting to serve": func(t *testing.T, dir string) *exec.Cmd {
			silentPipe(t, dir+"/config")
			return command(t, nil, "serve", "--root", dir+"/root", "--config", dir+"/config")
		},
		"reading containerd's config": func(t *testing.T, dir string) *exec.Cmd {
			silentPipe(t, dir+"/config")
			return command(t, nil, "config", "check", dir+"/config")
		},
		"reading hosts.toml": func(t *testing.T, dir string) *exec.Cmd {
			silentPipe(t, dir+"/hosts/_default/hosts.toml")
			return command(t, nil, "pull", "--root", dir+"/root", "--hosts-dir", dir+"/hosts", "127.0.0.1:1/x:1")
		},
		"waiting for a credential helper": func(t *testing.T, dir string) *exec.Cmd {
			reg := registrytest.New(t)
			reg.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return true
			})
			if err := errors.Join(os.WriteFile(dir+"/docker-credential-hang", []byte("#!/bin/sh\nsleep 60\n"), 0o700),
				os.WriteFile(dir+"/config.json", []byte(`{"credsStore":"hang"}`), 0o600)); err != nil {
				t.Fatal(err)
			}
			return command(t, []string{"DOCKER_CONFIG=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH")},
				"pull", "--root", dir+"/root", reg.Host+"/x:1")
		},
		"writing into a pipe that nobody reads": func(t *testing.T, dir string) *exec.Cmd {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close(); w.Close() })
			size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			cmd := command(t, nil, "config", "default")
			cmd.Stdout = w
			return cmd
		},
	} {
		signal := syscall.SIGTERM
		if len(name)%2 == 0 { // only half of the commands, to save time
			signal = syscall.SIGINT
		}
		t.Run(fmt.Sprint(name, ", ", signal), func(t *testing.T) {
			t.Parallel()
			cmd := start(t, t.TempDir())
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(700 * time.Millisecond)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_ = cmd.Wait()
			if took := time.Since(began); took > endLimit || cmd.ProcessState.ExitCode() != 128+int(signal) {
				t.Errorf("it took %s, %s: %s", took, cmd.ProcessState, stderr.String())
			}
		})
	}
}

// TestInterruptedOwner: an interrupted command ends although another command depends on it. The other command then
// continues by itself.
func TestInterruptedOwner(t *testing.T) {
	t.Parallel()
	reg, _, slow, held, release := registry(t)
	root := filepath.Join(t.TempDir(), "root")
	owner := command(t, nil, "pull", "--root", root, "--progress", "none", reg.Host+"/hello:held")
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	await := func(part string) {
		for deadline := time.Now().Add(patienceOfTests); reg.Count(part) == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no request for %s", part)
			}
		}
	}
	await(held.Encoded())
	second := command(t, nil, "pull", "--root", root, "--progress", "none", reg.Host+"/hello:slow")
	var out, stderr bytes.Buffer
	second.Stdout, second.Stderr = &out, &stderr
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	await(slow.Encoded())
	if err := owner.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_ = owner.Wait()
	if took := time.Since(began); took > endLimit || owner.ProcessState.ExitCode() != 143 {
		t.Errorf("the owner took %s to end: %s", took, owner.ProcessState)
	}
	release()
	if err := second.Wait(); err != nil || !strings.HasPrefix(out.String(), root) {
		t.Errorf("the second: %v, %q, %s", err, out.String(), stderr.String())
	}
}
