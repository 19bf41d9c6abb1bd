package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/reserve"
)

// startsWithin is how long Reach waits for a process that owns the root but has no socket, because it
// starts or ends.
const startsWithin = 4 * time.Second

// ReachOptions of Reach. nil means the zero value.
type ReachOptions struct {
	// Open opens the root if no other process owns it. It must return errdefs.ErrUnavailable if one does. nil:
	// tank.Open without options, which makes a root in a directory that is missing or empty.
	Open func(root string) (*tank.Tank, error)
	// HostsDir is the hosts directory for pulls of other programs that have none, while this process owns
	// the root. "": no hosts.toml is read for them.
	HostsDir string
}

// Reach calls fn with the service of a root. If no other process owns the root, this process owns it until
// fn returns, and serves other programs meanwhile; otherwise the service is that of the owner. The service
// is closed after fn. opts may be nil.
//
// fn is called again if the owner ended before it answered. If this process owns the root, Reach returns
// only when the calls of other programs have ended; when ctx ends, it cancels those calls.
//
// Beside the errors of fn and of Open it returns errdefs.ErrUnavailable if the owner of the root has no socket,
// errdefs.ErrPermissionDenied if the process at the socket must not be trusted, and the errors of [Dial].
func Reach(ctx context.Context, root string, opts *ReachOptions, fn func(tank.Service) error) error {
	if opts == nil {
		opts = &ReachOptions{}
	}
	for deadline := (time.Time{}); ; {
		began := time.Now()
		again, err := opts.attempt(ctx, root, fn)
		if !again || ctx.Err() != nil {
			return err
		}
		if deadline.IsZero() || time.Since(began) > startsWithin { // a process answered until a moment ago
			deadline = time.Now().Add(startsWithin)
		}
		if time.Now().After(deadline) {
			return cause.Mark(fmt.Errorf("root %s: its owner does not answer: %w", root, err), cause.Silent, "")
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attempt calls fn once, if the root can be opened or its owner answers. It reports whether another attempt
// may succeed: neither was possible, or the owner ended during fn.
func (o *ReachOptions) attempt(ctx context.Context, root string, fn func(tank.Service) error) (again bool, err error) {
	own, err := o.open(root)
	if err == nil {
		return false, o.own(ctx, own, fn)
	}
	if !errdefs.IsUnavailable(err) {
		return false, err
	}
	owner, derr := dialRoot(ctx, root)
	switch {
	case errors.Is(derr, ErrSilent), errdefs.IsPermissionDenied(derr), errdefs.IsNotImplemented(derr):
		return false, fmt.Errorf("root %s: another process owns it: %w", root, derr)
	case derr != nil:
		return true, err
	}
	defer owner.Close()
	err = fn(owner)
	if errors.Is(err, ErrSilent) {
		return false, fmt.Errorf("root %s: another process owns it: %w", root, err)
	}
	// If the process still answers, the error is its own, for example that a registry is unavailable.
	if errdefs.IsUnavailable(err) && !owner.alive(ctx) {
		return true, err
	}
	return false, err
}

func (o *ReachOptions) open(root string) (*tank.Tank, error) {
	if o.Open == nil {
		return tank.Open(root, nil)
	}
	return o.Open(root)
}

// own calls fn for a root that this process owns, and serves other programs meanwhile.
func (o *ReachOptions) own(ctx context.Context, t *tank.Tank, fn func(tank.Service) error) (err error) {
	defer func() {
		if e := t.Close(); err == nil {
			err = e
		}
	}()
	if t.ReadOnly() {
		return fn(t) // several processes can read a root at the same time
	}
	var l net.Listener
	err = t.Spend(func() (err error) {
		l, err = Listen(ctx, t.Root())
		return err
	})
	if reserve.Full(err) {
		return fn(t) // without a socket: fn may free space
	}
	if err != nil {
		return err
	}
	// Calls of other programs are finished, unless ctx ends: then those programs go on by themselves, with
	// what the root has by then.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	served := make(chan error, 1)
	server := newServer(t, &ServeOptions{HostsDir: o.HostsDir, Drain: -1})
	go func() { served <- server.Serve(serving, l) }()
	defer context.AfterFunc(ctx, server.Abort)()
	err = fn(t)
	server.Idle()
	stop()
	if e := <-served; err == nil {
		err = e
	}
	return err
}

// dialRoot connects to the process that owns a root which, as tank.Open has found, belongs to this user. It
// checks that the socket is not a link and that the process has this root.
func dialRoot(ctx context.Context, root string) (*Client, error) {
	path := filepath.Join(root, SocketName)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w: %w", path, err, errdefs.ErrUnavailable)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return nil, untrusted(fmt.Errorf("socket %s: not a socket: %w", path, errdefs.ErrPermissionDenied))
	}
	c, err := Dial(ctx, path, nil)
	if err != nil {
		return nil, err
	}
	if !c.Serves(root) {
		c.Close()
		return nil, untrusted(fmt.Errorf("socket %s: the process there has another root, %s: %w", path, c.Root(),
			errdefs.ErrPermissionDenied))
	}
	return c, nil
}

// untrusted marks an error about a process whose answers are not believed.
func untrusted(err error) error { return cause.Mark(err, cause.Untrusted, "") }
