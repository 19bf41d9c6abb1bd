// Trap runs a program whose syncs wait for another process, which may end the world before one of them.
//
//	trap SOCKET PROGRAM ARG...
//
// It installs a seccomp filter that reports fsync, fdatasync, syncfs and sync, sends the descriptor of the reports to
// the unix socket, and becomes PROGRAM. The program and its children keep the filter.
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: trap SOCKET PROGRAM ARG...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "trap:", err)
		os.Exit(1)
	}
}

func run(socket string, argv []string) error {
	runtime.LockOSThread() // the filter is that of the thread that becomes the program
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	reports, err := install()
	if err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	unix.CloseOnExec(reports)
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(reports), nil); err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	return unix.Exec(path, argv, os.Environ())
}

// install installs the filter on this thread and returns the descriptor of its reports.
func install() (int, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return 0, err
	}
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for _, name := range []string{"fsync", "fdatasync", "syncfs", "sync"} {
		code = append(code,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(info.SyscallNames[name])},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}
