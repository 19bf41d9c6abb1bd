package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// programs are the paths of the programs by name; a missing program has no entry.
type programs map[string]string

// findPrograms builds Tank and the peers from the Go module proxy, and looks for the others in the PATH.
func findPrograms(ctx context.Context) (programs, error) {
	dir, err := integration.Build()
	if err != nil {
		return nil, err
	}
	p := programs{}
	for _, name := range []string{"containerd", "ctr", "registry"} {
		p[name] = filepath.Join(dir, name)
	}
	if p["tank"], err = integration.Tank(); err != nil {
		return nil, err
	}
	if p["crane"], err = buildCrane(ctx, dir); err != nil {
		return nil, err
	}
	for _, name := range []string{"tar", "skopeo", "umoci", "igzip", "unpigz"} {
		if path, err := exec.LookPath(name); err == nil {
			p[name] = path
		}
	}
	return p, nil
}

// buildCrane builds crane into dir unless it is there.
func buildCrane(ctx context.Context, dir string) (string, error) {
	out := filepath.Join(dir, "crane")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	_, file, _, _ := runtime.Caller(0)
	tmp := fmt.Sprintf("%s.%d", out, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", tmp,
		"github.com/google/go-containerregistry/cmd/crane")
	cmd.Dir, cmd.Env = filepath.Dir(file),
		append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("go build crane: %w\n%s", err, b), os.RemoveAll(tmp))
	}
	return out, os.Rename(tmp, out)
}

// daemon is a program that runs beside the pulls.
type daemon struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// startDaemon starts a program with its output in a file.
func startDaemon(cmd *exec.Cmd, log string) (*daemon, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := start(cmd); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// await waits until the daemon answers.
func (d *daemon) await(ctx context.Context, answers func() bool) error {
	deadline := time.Now().Add(30 * time.Second)
	for !answers() {
		select {
		case <-d.done:
			b, _ := os.ReadFile(d.log)
			return fmt.Errorf("%s ended:\n%s", filepath.Base(d.cmd.Path), last(b, 3000))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer", filepath.Base(d.cmd.Path))
		}
	}
	return nil
}

// end asks the daemon to end, and kills it when it does not.
func (d *daemon) end() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

func listens(socket string) func() bool {
	return func() bool {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		return c.Close() == nil
	}
}

// registry is a running registry.
type registry struct {
	*daemon
	addr string // host:port
}

// startRegistry serves what is in store on a free port.
func startRegistry(ctx context.Context, config, store string, p programs) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", store, addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	d, err := startDaemon(exec.Command(p["registry"], "serve", config), config+".log")
	if err != nil {
		return nil, err
	}
	err = d.await(ctx, func() bool {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if err != nil {
		d.end()
		return nil, err
	}
	return &registry{d, addr}, nil
}

// start starts cmd on an OS thread that lives as long as this process, because Pdeathsig is sent at the
// end of the thread that forked.
func start(cmd *exec.Cmd) error {
	starter.once.Do(func() {
		starter.requests = make(chan startRequest)
		go func() {
			runtime.LockOSThread()
			for r := range starter.requests {
				r.result <- r.cmd.Start()
			}
		}()
	})
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	r := startRequest{cmd, make(chan error)}
	starter.requests <- r
	return <-r.result
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan error
}

var starter struct {
	once     sync.Once
	requests chan startRequest
}
