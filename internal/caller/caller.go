// Package caller finds out which containerd database the process at the other end of a unix socket has open.
//
// It owns nothing on disk.
//
// Its invariant: what it returns about a database was read from a file that the process has open or locked, never from
// a path that merely looks right.
//
// The surprising rule: as root without CAP_SYS_PTRACE, which is how Tank's unit runs, the links in /proc/PID/fd of a
// process with more capabilities can't be read. Then the locks that the process holds, from /proc/locks, are compared
// with the places where its database may be.
package caller

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/peer"
)

// Process is what the kernel knows about the process that connected. The zero value is a process about which it knows
// nothing.
type Process struct {
	// PID is 0 for a process that is not visible in this process's PID namespace.
	PID int
	UID uint32
	// Started is when the process started, in ticks since boot, so that its PID is not mistaken for that of a later
	// one. 0: not known.
	Started uint64
	// Handle identifies the process as long as the system runs, also when PID is 0. 0: the kernel is older than 6.9.
	Handle uint64
}

// pidfs is the type of the filesystem of pidfds whose inode numbers identify processes.
const pidfs = 0x50494446

// Of returns the process that connected; the zero value if the connection is not a unix socket.
func Of(conn net.Conn) Process {
	cred, err := peer.Of(conn)
	if err != nil {
		return Process{}
	}
	p := Process{PID: int(cred.Pid), UID: cred.Uid}
	if socket, ok := conn.(syscall.Conn); ok {
		p.Handle = handle(socket)
	}
	if p.PID != 0 {
		p.Started = started(p.PID)
	}
	return p
}

func handle(socket syscall.Conn) (inode uint64) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // of a closed connection there is none
		pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if err != nil {
			return
		}
		defer unix.Close(pidfd)
		var fs unix.Statfs_t
		var st unix.Stat_t
		if unix.Fstatfs(pidfd, &fs) == nil && fs.Type == pidfs && unix.Fstat(pidfd, &st) == nil {
			inode = st.Ino
		}
	})
	return inode
}

// Alive reports whether the process still runs. known is false for one that can't be seen from here.
func (p Process) Alive() (alive, known bool) {
	if p.PID == 0 || p.Started == 0 {
		return false, false
	}
	return started(p.PID) == p.Started, true
}

// started reads when a process started, 0 when there is none or /proc does not show it. A zombie does not run any more.
func started(pid int) uint64 {
	text, err := os.ReadFile(proc(pid, "stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	n, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func proc(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// Busy reports whether a process has the file at path locked as bbolt locks its database, if the file is still the one
// that f describes.
func Busy(f File) bool {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	if now, err := describe(file); err != nil || !now.Same(f) {
		return false
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) // given up with the file
	return errors.Is(err, unix.EWOULDBLOCK)
}
