package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/socket"
	"github.com/tank-snapshotter/tank/plugin"
)

// remote is the service of a root that another process owns.
type remote struct {
	*plugin.Client
	socket  string
	owners  []uint32
	release func()
}

// dial connects to the process that listens on a socket, however long the socket's path is. The process has to belong
// to uid 0, this user or one of the owners.
func dial(ctx context.Context, address string, owners ...uint32) (*remote, error) {
	dir, name := filepath.Split(address)
	path, release, err := socket.Path(first(dir, "."), name)
	if err != nil {
		return nil, err
	}
	client, err := plugin.Dial(ctx, path, &plugin.DialOptions{Owners: owners})
	if err != nil {
		release()
		return nil, err
	}
	return &remote{Client: client, socket: address, owners: owners, release: release}, nil
}

// dialRoot connects to the process that owns a root which, as tank.Open has found, belongs to this user. It checks that
// the socket is not a link and that the process has this root.
func dialRoot(ctx context.Context, root string) (*remote, error) {
	socket := filepath.Join(root, socketName)
	fi, err := os.Lstat(socket)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w: %w", socket, err, errdefs.ErrUnavailable)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("socket %s: not a socket: %w", socket, errdefs.ErrPermissionDenied)
	}
	r, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	if !sameDirectory(root, r.Root()) {
		r.Close()
		return nil, fmt.Errorf("socket %s: the process there has another root, %s: %w", socket, r.Root(),
			errdefs.ErrPermissionDenied)
	}
	return r, nil
}

// ownersOf returns the owner of a root that an ordinary user named beside an address, because a daemon of that owner
// may serve a group. uid 0 trusts only processes of uid 0, so that no other user gets its passwords.
func ownersOf(root string) []uint32 {
	var st unix.Stat_t
	if root == "" || os.Geteuid() == 0 || unix.Stat(root, &st) != nil {
		return nil
	}
	return []uint32{st.Uid}
}

// Close ends the connection.
func (r *remote) Close() error {
	err := r.Client.Close()
	r.release()
	return err
}

// alive says whether the process still answers, so that an error it gave is its answer and not its end.
func (r *remote) alive(ctx context.Context) bool {
	again, err := dial(ctx, r.socket, r.owners...)
	if err != nil {
		return false
	}
	again.Close()
	return true
}
