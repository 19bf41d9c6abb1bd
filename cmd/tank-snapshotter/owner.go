package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/reserve"
	"github.com/tank-snapshotter/tank/internal/socket"
	"github.com/tank-snapshotter/tank/plugin"
)

// patience is how long a command waits between the two ways to a root: owning it, and asking the process that owns it. Neither works while
// that process starts or ends.
const (
	patience      = 10 * time.Second // how long a daemon waits for a command to end
	answersWithin = 4 * time.Second  // how long a command waits for a process that starts or ends
)

// socketName is the admin socket of the process that owns a root, below it.
const socketName = "tank.sock"

// access is what a command does to a root.
type access int

const (
	reads   access = iota // nothing, so that a root that can't be written will do
	changes               // it changes a root, and makes none
	fills                 // it makes a root where none is
)

func (a access) options() *tank.Options {
	return &tank.Options{Existing: a != fills, AllowReadOnly: a == reads}
}

// with runs f with the service of the right root: this process's own, or that of the process that owns the root or listens on --address.
// f is called again when that process ended before it answered.
func (c *cli) with(ctx context.Context, a access, f func(plugin.Admin) error) error {
	if c.address != "" {
		return c.withAddress(ctx, f)
	}
	s, err := c.settingsFor(ctx, false)
	if err != nil {
		return err
	}
	root, err := c.chooseRoot(ctx, s)
	if err != nil {
		return err
	}
	for deadline := (time.Time{}); ; {
		began := time.Now()
		again, err := c.attempt(ctx, root, first(s.HostsDir, defaultHosts), a, f)
		if !again || ctx.Err() != nil {
			return err
		}
		if deadline.IsZero() || time.Since(began) > answersWithin { // a process answered until just now
			deadline = time.Now().Add(answersWithin)
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

// attempt runs f once, in whichever of the two ways is open just now. It says whether neither was, or f's owner went away.
func (c *cli) attempt(ctx context.Context, root, hostsDir string, a access,
	f func(plugin.Admin) error,
) (again bool, err error) {
	own, err := openLocal(root, hostsDir, a.options())
	if err == nil {
		return false, c.asOwner(ctx, own, f)
	}
	if !errdefs.IsUnavailable(err) {
		return false, err
	}
	other, derr := dialRoot(ctx, root)
	switch {
	case errors.Is(derr, plugin.ErrSilent) || errdefs.IsPermissionDenied(derr):
		return false, unreachable(fmt.Errorf("root %s: another process owns it: %w", root, derr))
	case derr != nil:
		return true, err
	}
	defer other.Close()
	err = f(other)
	if errors.Is(err, plugin.ErrSilent) {
		return false, unreachable(fmt.Errorf("root %s: another process owns it: %w", root, err))
	}
	// The answer may be that a registry is unavailable; the process that gave it is there then.
	if errdefs.IsUnavailable(err) && !other.alive(ctx) {
		return true, err
	}
	return false, err
}

// unreachable is an error about a process that does not answer, or whose answer is not trusted.
func unreachable(err error) error {
	if errors.Is(err, plugin.ErrSilent) {
		return cause.Mark(err, cause.Silent, "")
	}
	return cause.Mark(err, cause.Untrusted, "")
}

// asOwner runs f on a root that this process owns, and meanwhile does for others what they ask for.
func (c *cli) asOwner(ctx context.Context, own *local, f func(plugin.Admin) error) (err error) {
	defer func() {
		if e := own.Close(); err == nil {
			err = e
		}
	}()
	if own.tank.ReadOnly() {
		return f(own) // a root that is only read can be shared
	}
	var l *socket.Listener
	err = own.tank.Spend(func() (err error) {
		l, err = socket.Listen(ctx, own.Root(), socketName, nil)
		return err
	})
	if reserve.Full(err) {
		return f(own) // without a socket: this command may be the one that frees space
	}
	if err != nil {
		return localError{err}
	}
	// Requests of other commands are finished, unless this command is interrupted: then those commands go on by
	// themselves, with what is in the root by then.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	served := make(chan error, 1)
	server := plugin.New(&plugin.Options{Admin: own, Drain: -1})
	go func() { served <- server.Serve(serving, l) }()
	defer context.AfterFunc(ctx, server.Abort)()
	err = f(own)
	server.Idle()
	stop()
	if e := <-served; err == nil && e != nil {
		err = localError{e}
	}
	return err
}

// withAddress runs f at the daemon that --address names, which has to be the one of --root if that is given as well.
func (c *cli) withAddress(ctx context.Context, f func(plugin.Admin) error) error {
	other, err := dial(ctx, c.address, ownersOf(c.root)...)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hinted{localError{fmt.Errorf("address %s: %w", c.address, err)},
			"The socket is for root and for the group that serve --group names."}
	case errors.Is(err, plugin.ErrSilent) || errdefs.IsPermissionDenied(err):
		return unreachable(fmt.Errorf("address %s: %w", c.address, err))
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return cause.Mark(fmt.Errorf("address %s: %w", c.address, err), cause.NoDaemon, "")
	}
	defer other.Close()
	if c.root != "" {
		root, err := filepath.Abs(c.root)
		if err != nil {
			return err
		}
		if !sameDirectory(root, other.Root()) {
			return usageError{fmt.Errorf("--root %s: the daemon at %s has the root %s", root, c.address, other.Root())}
		}
	}
	if err = f(other); errors.Is(err, plugin.ErrSilent) {
		return unreachable(fmt.Errorf("address %s: %w", c.address, err))
	}
	return err
}

func sameDirectory(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// chooseRoot finds the root of the commands other than serve. uid 0 works on the daemon's, also while no daemon runs: a command that then
// took another would find nothing there, and pull everything again.
func (c *cli) chooseRoot(ctx context.Context, s settings) (string, error) {
	if root := first(c.root, os.Getenv("TANK_CACHE"), s.ImageCache); root != "" {
		return filepath.Abs(root)
	}
	if os.Geteuid() == 0 {
		if root, err := c.daemonRoot(ctx); root != "" || err != nil {
			return root, err
		}
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", usageError{fmt.Errorf("no home directory to keep images in: %w: name a directory with --root", err)}
	}
	return filepath.Join(dir, "tank"), nil
}

// daemonRoot is the root of the daemon that the configuration of serve describes, if it runs or ever did; else "".
func (c *cli) daemonRoot(ctx context.Context) (string, error) {
	s, err := c.settingsFor(ctx, true)
	if err != nil {
		return "", err
	}
	address := first(s.Address, defaultAddress)
	switch daemon, err := dial(ctx, address); {
	case err == nil:
		defer daemon.Close()
		return daemon.Root(), nil
	case errors.Is(err, plugin.ErrSilent) || errdefs.IsPermissionDenied(err):
		return "", unreachable(fmt.Errorf("address %s: %w", address, err))
	}
	root, err := filepath.Abs(first(s.Root, defaultRoot))
	if err != nil {
		return "", err
	}
	if !tank.IsRoot(root) {
		return "", nil
	}
	return root, nil
}
