package peer

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
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

// Unchanged reports whether the process still has its PID, or ended before anything was known about it.
func (p Process) Unchanged() bool { return p.Started == started(p.PID) }

// started reads when a process started, 0 when there is none or /proc does not show it. A zombie does not run
// any more.
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
