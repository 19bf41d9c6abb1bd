// Package peer reports which process is at the other end of a unix socket, and whether that process still runs.
//
// It owns nothing on disk.
//
// Its invariant: the answer comes from the kernel (SO_PEERCRED, SO_PEERPIDFD, /proc) and never from the process.
//
// The surprising rule: on the side that connected, the kernel reports the process that called listen, even if another
// process accepts connections now. A PID may belong to another process by the time it is used, so a Process also has
// the time at which the process started.
package peer

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Credentials returns the pid, uid and gid that the process at the other end of conn had when it connected or listened.
// It returns errdefs.ErrInvalidArgument for a connection that is not a unix socket.
func Credentials(conn net.Conn) (unix.Ucred, error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return unix.Ucred{}, fmt.Errorf("peer of a %T: not a socket: %w", conn, errdefs.ErrInvalidArgument)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return unix.Ucred{}, fmt.Errorf("peer: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return unix.Ucred{}, fmt.Errorf("peer: %w", err)
	}
	if cred.Pid == 0 && cred.Uid == ^uint32(0) { // what the kernel returns for a TCP socket
		return unix.Ucred{}, fmt.Errorf("peer of a %s socket: unknown: %w", conn.LocalAddr().Network(),
			errdefs.ErrInvalidArgument)
	}
	return *cred, nil
}
