package processor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// mediaTypeVariable is the environment variable with the media type of a program's input. containerd sets it as well.
const mediaTypeVariable = "STREAM_PROCESSOR_MEDIATYPE"

// stderrWait is how long a program that left the process group of its parent may keep stderr open.
const stderrWait = time.Second

// process is a running program.
type process struct {
	id     string
	cmd    *exec.Cmd
	stderr end
	done   chan struct{} // closed when err is set
	err    error         // how it ended

	mu     sync.Mutex // guards reaped
	reaped bool       // its PID may belong to another process
}

// start starts a program that reads from in. It returns the process and the pipe with its output.
func start(p Processor, mediaType string, in *os.File, payload []byte) (*process, *os.File, error) {
	out, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	c := exec.CommandContext(context.Background(), p.Path, p.Args...) // Close kills it with its process group
	c.Env = append(append(environment(), p.Env...), mediaTypeVariable+"="+mediaType)
	c.Stdin, c.Stdout, c.WaitDelay = in, w, stderrWait
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	proc := &process{id: p.ID, cmd: c, done: make(chan struct{})}
	c.Stderr = &proc.stderr
	if payload != nil {
		r, w, err := os.Pipe()
		if err != nil {
			out.Close()
			return nil, nil, err
		}
		defer r.Close()
		c.ExtraFiles = []*os.File{r}
		go func() {
			_, _ = w.Write(payload) // the program may not read it
			w.Close()
		}()
	}
	started := make(chan error, 1)
	go proc.run(started)
	if err := <-started; err != nil {
		out.Close()
		return nil, nil, err
	}
	return proc, out, nil
}

// run starts the program and waits for its end, on a locked thread, because the kernel kills a program with
// Pdeathsig when the thread that started it ends.
func (p *process) run(started chan<- error) {
	defer close(p.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); { // until it has ended, without freeing its PID
		err = unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	p.mu.Lock()
	p.killGroup() // the programs that it has started and that still run
	p.reaped = true
	err = p.cmd.Wait()
	p.mu.Unlock()
	var exit *exec.ExitError
	if text := p.stderr.text(); errors.As(err, &exit) && text != "" {
		err = errors.New(text)
	}
	p.err = err
}

// kill kills the program and the programs that it has started.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		p.killGroup()
	}
}

// killGroup also kills the program itself if it has left its process group.
func (p *process) killGroup() {
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	_ = unix.Kill(p.cmd.Process.Pid, unix.SIGKILL)
}

// maxStderr is the length of the kept end of stderr, in bytes.
const maxStderr = 4 << 10

// end is a writer that keeps the end of what is written to it.
type end struct {
	mu   sync.Mutex // guards kept
	kept []byte
}

func (e *end) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept = append(e.kept, b[max(0, len(b)-maxStderr):]...)
	if over := len(e.kept) - maxStderr; over > 0 {
		e.kept = append(e.kept[:0], e.kept[over:]...)
	}
	return len(b), nil
}

// text returns the kept end on one line.
func (e *end) text() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return printable.Text(strings.TrimSpace(string(bytes.ToValidUTF8(e.kept, nil))))
}

// feed copies a blob to the first program. If the program stops reading, feed reads the rest of the blob itself.
type feed struct {
	to    *os.File
	count atomic.Int64  // bytes that the program has read
	done  chan struct{} // closed when err is set
	err   error         // of the blob
}

func startFeed(to *os.File, blob io.Reader) *feed {
	f := &feed{to: to, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		defer to.Close()
		buf := make([]byte, 64<<10)
		for refused := false; ; {
			n, err := blob.Read(buf)
			if n > 0 && !refused {
				if _, werr := to.Write(buf[:n]); werr != nil {
					refused = true
					to.Close()
				}
				f.count.Add(int64(n))
			}
			if err != nil {
				if err != io.EOF {
					f.err = err
				}
				return
			}
		}
	}()
	return f
}
