// Package peer reports which process is at the other end of a unix socket.
//
// It owns nothing on disk.
//
// Its invariant: the answer is the kernel's (SO_PEERCRED), and never the word of the process.
//
// The surprising rule: for the side that connected, the kernel reports the process that called listen, also when
// another process has the socket now; a pid may belong to another process by the time it is looked at.
package peer

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Of returns pid, uid and gid of the process at the other end of conn, as they were when it connected or listened.
// errdefs.ErrInvalidArgument for a connection that is no unix socket.
func Of(conn net.Conn) (unix.Ucred, error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return unix.Ucred{}, fmt.Errorf("peer of a %T: no socket: %w", conn, errdefs.ErrInvalidArgument)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return unix.Ucred{}, fmt.Errorf("peer: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return unix.Ucred{}, fmt.Errorf("peer: %w", err)
	}
	if cred.Pid == 0 && cred.Uid == ^uint32(0) { // what the kernel returns for a TCP socket
		return unix.Ucred{}, fmt.Errorf("peer of a %s socket: not known: %w", conn.LocalAddr().Network(),
			errdefs.ErrInvalidArgument)
	}
	return *cred, nil
}
