package proof

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/integration"
)

// trap counts the syncs of the programs that run below it, and calls cut instead of one of them.
type trap struct {
	program string
	socket  string
	below   string // only syncs of files below this directory count
	listen  *net.UnixListener
	readers sync.WaitGroup

	mu     sync.Mutex
	count  int
	target int // the sync that does not happen; 0: none
	cut    func()
	done   bool // cut was called
}

// newTrap makes a trap for the files below dir.
func newTrap(t *testing.T, e *integration.Env, dir string) *trap {
	t.Helper()
	program, err := integration.TrapProgram()
	if err != nil {
		t.Fatal(err)
	}
	r := &trap{program: program, socket: e.Path("trap.sock"), below: dir}
	r.listen, err = net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go r.accept()
	t.Cleanup(func() {
		_ = r.listen.Close()
		r.readers.Wait()
	})
	return r
}

// argv runs a program below the trap.
func (r *trap) argv(argv []string) []string { return append([]string{r.program, r.socket}, argv...) }

// arm makes the trap call cut instead of the sync number n, counted from now. With 0 it only counts.
func (r *trap) arm(n int, cut func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count, r.target, r.cut, r.done = 0, n, cut, false
}

// disarm lets every sync pass, and reports whether cut was called and how many syncs were counted.
func (r *trap) disarm() (cut bool, count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = 0
	return r.done, r.count
}

// accept takes the descriptors of reports.
func (r *trap) accept() {
	for {
		c, err := r.listen.AcceptUnix()
		if err != nil {
			return
		}
		fd, err := receive(c)
		_ = c.Close()
		if err == nil {
			r.readers.Go(func() { r.read(fd) })
		}
	}
}

func receive(c *net.UnixConn) (int, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return 0, errors.Join(err, errors.New("no descriptor came"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// The structs seccomp_notif and seccomp_notif_resp.
type (
	report struct {
		id    uint64
		pid   uint32
		flags uint32
		nr    int32
		arch  uint32
		ip    uint64
		args  [6]uint64
	}
	answer struct {
		id    uint64
		val   int64
		errno int32
		flags uint32
	}
)

// read answers reports until the programs have ended.
func (r *trap) read(fd int) {
	defer unix.Close(fd)
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents != 0 {
				return
			}
			continue
		}
		var got report
		if !ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&got)) {
			continue // the call was interrupted
		}
		if r.before(got) {
			ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer{id: got.id,
				flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}))
		}
	}
}

func ioctl(fd int, request uint, arg unsafe.Pointer) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	return errno == 0
}

// before reports whether a sync may happen. One that may not waits until its process is killed.
func (r *trap) before(s report) bool {
	if s.nr != unix.SYS_SYNC {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", s.pid, int32(s.args[0])))
		if err != nil || path != r.below && !strings.HasPrefix(path, r.below+"/") {
			return true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	if r.target == 0 || r.count < r.target {
		return true
	}
	if !r.done {
		r.done = true
		r.cut()
	}
	return false
}
