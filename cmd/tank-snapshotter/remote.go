package main

import (
	"context"
	"path/filepath"
	"time"

	"github.com/tank-snapshotter/tank/plugin"
)

// remote is the service of a root that another process owns.
type remote struct {
	*plugin.Client
	socket  string
	release func()
}

// answersWithin is how long a process may take to say which root it owns.
const answersWithin = 5 * time.Second

// dial connects to the process that listens on a socket, however long the socket's path is.
func dial(ctx context.Context, socket string) (*remote, error) {
	dir, name := filepath.Split(socket)
	path, release, err := socketPath(first(dir, "."), name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	client, err := plugin.Dial(ctx, path)
	if err != nil {
		release()
		return nil, err
	}
	return &remote{Client: client, socket: socket, release: release}, nil
}

// Close ends the connection.
func (r *remote) Close() error {
	err := r.Client.Close()
	r.release()
	return err
}

// alive says whether the process still answers, so that an error it gave is its answer and not its end.
func (r *remote) alive(ctx context.Context) bool {
	again, err := dial(ctx, r.socket)
	if err != nil {
		return false
	}
	again.Close()
	return true
}
