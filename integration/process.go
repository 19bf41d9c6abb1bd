package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs beside the test: a daemon, or a command that a test will kill.
type Process struct {
	Name string
	Log  string // file with its stdout and stderr
	cmd  *exec.Cmd
	done chan struct{} // closed after Wait returned err
	err  error
}

// Start starts a program with its output in a file of its own. It ends with the Env at the latest, and
// with the test process even if that is killed.
func (e *Env) Start(name string, argv ...string) *Process {
	e.t.Helper()
	p, err := e.start(name, argv...)
	if err != nil {
		e.t.Fatalf("start %s: %v", name, err)
	}
	return p
}

func (e *Env) start(name string, argv ...string) (*Process, error) {
	e.mu.Lock()
	log := e.Path("log", fmt.Sprintf("%02d-%s", len(e.procs), name))
	e.mu.Unlock()
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	path, err := e.lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = e.environ(), e.Dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	if err := spawn(cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	e.mu.Lock()
	e.procs = append(e.procs, p)
	e.mu.Unlock()
	return p, nil
}

// lookPath finds a program in Bin or tools, else in the PATH.
func (e *Env) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range []string{e.Bin, e.tools} {
		own := filepath.Join(dir, name)
		if _, err := os.Stat(own); err == nil {
			return own, nil
		}
	}
	return exec.LookPath(name)
}

// logLevel is that of the daemons, whose logs are printed when a test fails.
func logLevel() string {
	if l := os.Getenv("TANK_TEST_LOG"); l != "" {
		return l
	}
	return "warn"
}

// Pid is the process's own id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill9 kills the process and waits for its end.
func (p *Process) Kill9() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, and kills it when it does not within ten seconds.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill9()
	}
}

// Wait waits for the end and returns the exit code; -1 after a signal.
func (p *Process) Wait(limit time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return 0, fmt.Errorf("%s did not end within %v", p.Name, limit)
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process still runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Result is the exit code and the output of a command.
type Result struct {
	Code           int
	Stdout, Stderr string
	argv           []string
}

func (r Result) String() string {
	return fmt.Sprintf("%s\nexit %d\nstdout: %s\nstderr: %s", strings.Join(r.argv, " "), r.Code, clip(r.Stdout),
		clip(r.Stderr))
}

func clip(s string) string {
	if len(s) > 4000 {
		return s[:2000] + "\n…\n" + s[len(s)-2000:]
	}
	return s
}

// commandLimit ends a command that hangs.
const commandLimit = 2 * time.Minute

// Run runs a command to its end and returns its result, whatever the exit code.
func (e *Env) Run(argv ...string) Result {
	e.t.Helper()
	path, err := e.lookPath(argv[0])
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = e.environ(), e.Dir, &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second // a detached container may keep the pipes
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = spawn(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		e.t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	r := Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String(), argv: argv}
	if ctx.Err() != nil {
		e.t.Fatalf("hangs: killed after %v: %s", commandLimit, r)
	}
	return r
}

// MustRun is Run for commands that have to succeed; it returns stdout.
func (e *Env) MustRun(argv ...string) string {
	e.t.Helper()
	return mustSucceed(e.t, e.Run(argv...))
}

func mustSucceed(t testing.TB, r Result) string {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("%s", r)
	}
	return r.Stdout
}

// spawn starts cmd on an OS thread that lives as long as the test process, because Pdeathsig is sent at
// the end of the thread that forked.
func spawn(cmd *exec.Cmd) error {
	spawner.once.Do(func() {
		spawner.requests = make(chan spawnRequest)
		go func() {
			runtime.LockOSThread()
			for r := range spawner.requests {
				r.result <- r.cmd.Start()
			}
		}()
	})
	r := spawnRequest{cmd, make(chan error)}
	spawner.requests <- r
	return <-r.result
}

type spawnRequest struct {
	cmd    *exec.Cmd
	result chan error
}

var spawner struct {
	once     sync.Once
	requests chan spawnRequest
}
