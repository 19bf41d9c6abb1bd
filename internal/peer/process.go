package peer

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process identifies the process that connected. The zero value is a process about which the kernel reports nothing.
type Process struct {
	// PID is 0 for a process that is not visible in this process's PID namespace.
	PID int
	UID uint32
	// Started is the start time of the process in ticks since boot. With it, a later process with the same PID is
	// recognized. 0: not known.
	Started uint64
	// Handle identifies the process until the system stops, even if PID is 0. 0: the kernel is older than 6.9.
	Handle uint64
}

// pidfs is the type of the filesystem of pidfds whose inode numbers identify processes.
const pidfs = 0x50494446

// Of returns the process that connected, the zero value for a connection that is not a unix socket.
func Of(conn net.Conn) Process {
	cred, err := Credentials(conn)
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
	_ = raw.Control(func(fd uintptr) { // fails for a closed connection
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

// Alive reports whether the process still runs. known is false if the process is not visible from here.
func (p Process) Alive() (alive, known bool) {
	if p.PID == 0 || p.Started == 0 {
		return false, false
	}
	return started(p.PID) == p.Started, true
}

// Unchanged reports whether no other process has got the PID since the connection was made.
func (p Process) Unchanged() bool { return p.Started == started(p.PID) }

// started returns the start time of a process, 0 if there is no such process or /proc does not show it. A
// zombie counts as ended.
func started(pid int) uint64 {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
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
