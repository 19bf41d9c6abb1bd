// Command inject runs a program and makes one of its system calls fail.
//
//	inject REPORT DIRECTORY N ERRNO PROGRAM [ARGUMENT...]
//
// The N-th call that changes or opens something in the directory, or reads or syncs a file there, fails
// with the error of that number, whichever thread makes it. With N = 0 none fails. The file REPORT then
// has how many such calls there were, and the one that failed.
//
// It owns nothing on disk but the report.
//
// Its invariant: calls elsewhere are never touched, so the program reads its configuration, writes its
// output and uses the network as usual.
//
// The surprising rule: nothing in the program is prepared for it. A seccomp filter hands each of the
// calls to this process (SECCOMP_RET_USER_NOTIF), which answers or lets it continue.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	code, err := 2, errors.New("usage: inject REPORT DIRECTORY N ERRNO PROGRAM [ARGUMENT...]")
	switch {
	case len(os.Args) > 2 && os.Args[1] == "-child":
		err = child(os.Args[2:])
	case len(os.Args) > 5:
		code, err = supervise(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inject:", err)
		os.Exit(125)
	}
	os.Exit(code)
}

// The socket to the supervisor, in the child.
const socket = 3

// child installs the filter, sends its listener to the supervisor and becomes the program.
func child(argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for nr := range calls {
		code = append(code,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return err
	}
	unix.CloseOnExec(socket)
	return unix.Exec(path, argv, os.Environ())
}

// supervise starts the child and answers its calls until it ends.
func supervise(report, dir, number, errno string, argv []string) (code int, err error) {
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0, err
	}
	failure, err := strconv.Atoi(errno)
	if err != nil {
		return 0, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", append([]string{"-child"}, argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(pair[1]), "socket")}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	cmd.ExtraFiles[0].Close()
	w := &watch{dir: dir, n: n, errno: failure}
	if w.listener, err = receive(pair[0]); err == nil {
		err = w.run()
	}
	var exit *exec.ExitError
	if waitErr := cmd.Wait(); waitErr != nil && !errors.As(waitErr, &exit) {
		err = errors.Join(err, waitErr)
	}
	text := fmt.Sprintf("%d %s\n", w.seen, w.hit)
	return cmd.ProcessState.ExitCode(), errors.Join(err, os.WriteFile(report, []byte(text), 0o600))
}

// receive receives the listener of the child's filter.
func receive(fd int) (int, error) {
	space := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), space, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(space[:n])
	if err != nil || len(messages) == 0 {
		return -1, fmt.Errorf("the child sent no listener: %w", errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// notice and answer are struct seccomp_notif and struct seccomp_notif_resp.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

const (
	receiveNotice = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	sendAnswer    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	carryOn       = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

// watch counts the calls in a directory.
type watch struct {
	listener int
	dir      string
	n, errno int
	seen     int
	hit      string
}

func (w *watch) run() error {
	for {
		poll := []unix.PollFd{{Fd: int32(w.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents != 0 {
				return nil // no process has the filter any more
			}
			continue
		}
		var in notice
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), receiveNotice,
			uintptr(unsafe.Pointer(&in))); errno != 0 {
			continue // the thread ended meanwhile
		}
		out := answer{id: in.id, flags: carryOn}
		if path := calls[int(in.nr)].path(&in); path == w.dir || strings.HasPrefix(path, w.dir+"/") {
			if w.seen++; w.seen == w.n {
				out.errno, out.flags = -int32(w.errno), 0
				w.hit = calls[int(in.nr)].name + " " + strings.TrimPrefix(path, w.dir)
			}
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), sendAnswer, uintptr(unsafe.Pointer(&out)))
	}
}

// call says where the arguments of a system call have a path.
type call struct {
	name string
	dir  int // the argument with the directory, or with the file if text is -1
	text int // the argument with the path; -1: there is none
}

var calls = map[int]call{
	unix.SYS_OPENAT: {"openat", 0, 1}, unix.SYS_OPENAT2: {"openat2", 0, 1},
	unix.SYS_MKDIRAT: {"mkdirat", 0, 1}, unix.SYS_MKNODAT: {"mknodat", 0, 1},
	unix.SYS_LINKAT: {"linkat", 2, 3}, unix.SYS_SYMLINKAT: {"symlinkat", 1, 2},
	unix.SYS_RENAMEAT: {"renameat", 0, 1}, unix.SYS_RENAMEAT2: {"renameat2", 0, 1},
	unix.SYS_UNLINKAT: {"unlinkat", 0, 1}, unix.SYS_FCHMODAT: {"fchmodat", 0, 1},
	unix.SYS_FCHOWNAT: {"fchownat", 0, 1}, unix.SYS_UTIMENSAT: {"utimensat", 0, 1},
	unix.SYS_WRITE: {"write", 0, -1}, unix.SYS_PWRITE64: {"pwrite64", 0, -1},
	unix.SYS_READ: {"read", 0, -1}, unix.SYS_PREAD64: {"pread64", 0, -1},
	unix.SYS_FTRUNCATE: {"ftruncate", 0, -1}, unix.SYS_FSYNC: {"fsync", 0, -1},
	unix.SYS_FDATASYNC: {"fdatasync", 0, -1}, unix.SYS_SYNCFS: {"syncfs", 0, -1},
	unix.SYS_FCHMOD: {"fchmod", 0, -1}, unix.SYS_FCHOWN: {"fchown", 0, -1},
	unix.SYS_FSETXATTR: {"fsetxattr", 0, -1}, unix.SYS_FALLOCATE: {"fallocate", 0, -1},
	unix.SYS_GETDENTS64: {"getdents64", 0, -1}, unix.SYS_FSTATFS: {"fstatfs", 0, -1},
}

// path returns the absolute path that a call concerns; "" if it cannot be found out.
func (c call) path(in *notice) string {
	process := "/proc/" + strconv.Itoa(int(in.pid))
	at := process + "/fd/" + strconv.Itoa(int(int32(in.args[c.dir])))
	if c.text < 0 {
		target, _ := os.Readlink(at)
		return target
	}
	text := readText(process+"/mem", int64(in.args[c.text]))
	if filepath.IsAbs(text) {
		return filepath.Clean(text)
	}
	if int32(in.args[c.dir]) == unix.AT_FDCWD {
		at = process + "/cwd"
	}
	target, err := os.Readlink(at)
	if err != nil {
		return ""
	}
	return filepath.Join(target, text)
}

// readText reads a text that ends with a NUL from the memory of a process.
func readText(memory string, at int64) string {
	f, err := os.Open(memory)
	if err != nil {
		return ""
	}
	defer f.Close()
	text := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(text, at) // less before the end of a mapping
	before, _, _ := strings.Cut(string(text[:n]), "\x00")
	return before
}
