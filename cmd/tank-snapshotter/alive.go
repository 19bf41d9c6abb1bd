package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/plugin/admin"
)

// connectTime is how long the watchdog waits until the kernel connects to a socket of this process.
const connectTime = time.Second

// liveness tells the watchdog whether this process answers calls. It does not ask whether the disk works: a process
// that waits for a disk would be killed in vain, and its successor would wait as well.
type liveness struct {
	root    string
	sockets []*probed
	// answers asks the server without a socket; Probe of the root asks the database for something that is in memory.
	answers, database func(context.Context) error
}

// probed is a socket that the watchdog connects to. A connection to a socket on a disk that stands still may hang, so
// there is one at a time.
type probed struct {
	path       string
	connecting chan struct{} // has one element while a connection is made
}

func newProbed(path string) *probed { return &probed{path, make(chan struct{}, 1)} }

// reachable reports whether the kernel connects at once, or with which error it refuses.
func (p *probed) reachable(ctx context.Context) (bool, error) {
	select {
	case p.connecting <- struct{}{}:
	default:
		return false, nil // an earlier attempt hangs
	}
	answer := make(chan error, 1)
	go func() {
		defer func() { <-p.connecting }()
		conn, err := (&net.Dialer{}).DialContext(context.WithoutCancel(ctx), "unix", p.path)
		if err == nil {
			conn.Close()
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err == nil, err
	case <-time.After(connectTime):
	case <-ctx.Done():
	}
	return false, nil
}

// check returns nil if this process answers, on each socket that can be reached as it would answer another process.
func (l *liveness) check(ctx context.Context) error {
	for _, socket := range l.sockets {
		reachable, err := socket.reachable(ctx)
		if err != nil {
			return fmt.Errorf("socket %s: %w: %w", socket.path, err, errdefs.ErrUnavailable)
		}
		if !reachable {
			continue
		}
		self, err := admin.Dial(ctx, socket.path, nil)
		if err != nil {
			return err
		}
		root := self.Root()
		self.Close()
		if root != l.root {
			return fmt.Errorf("socket %s: another process answers, for the root %s: %w", socket.path, root,
				errdefs.ErrUnavailable)
		}
	}
	if err := l.answers(ctx); err != nil {
		return err
	}
	return l.database(ctx)
}
