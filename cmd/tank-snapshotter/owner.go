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
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// patience is how long a daemon waits for a command that owns its root to end.
const patience = 10 * time.Second

// access is what a command does to a root.
type access int

const (
	reads   access = iota // it changes nothing, so a root that cannot be written is accepted
	changes               // it changes a root, and makes none
	fills                 // it makes a root if there is none
)

func (a access) options() *tank.Options {
	return &tank.Options{Existing: a != fills, AllowReadOnly: a == reads}
}

// with runs f with the service of the right root: as its owner, through the process that owns it, or through
// the daemon that --address names. f is called again if that process ended before it answered.
func (c *cli) with(ctx context.Context, a access, f func(tank.Service) error) error {
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
	var known error // of f, or of opening the root
	err = admin.Reach(ctx, root, &admin.ReachOptions{
		HostsDir: first(s.HostsDir, defaultHosts),
		Open: func(root string) (t *tank.Tank, err error) {
			t, known = openRoot(root, a.options())
			return t, known
		},
	}, func(svc tank.Service) error {
		known = f(svc)
		return known
	})
	if err != nil && known == nil && cause.Of(err).Kind == "" { // about the socket in the root
		return localError{err}
	}
	return err
}

// openRoot opens a root, and adds a hint to an error whose cause is not known.
func openRoot(root string, opts *tank.Options) (*tank.Tank, error) {
	t, err := tank.Open(root, opts)
	return t, rootError(err)
}

// rootError adds a hint to an error of opening a root whose cause is not known. Such an error does not come from a
// registry or an image.
func rootError(err error) error {
	switch why := cause.Of(err).Kind; {
	case err == nil, errdefs.IsUnavailable(err), errdefs.IsInvalidArgument(err):
		return err
	case why != "" && why != cause.Denied:
		return err
	}
	return hinted{localError{err}, "Choose another directory with --root, or check what this process may do there."}
}

// withAddress runs f with the daemon that --address names. If --root is given as well, it has to be the
// daemon's root.
func (c *cli) withAddress(ctx context.Context, f func(tank.Service) error) error {
	daemon, err := admin.Dial(ctx, c.address, &admin.DialOptions{Owners: ownersOf(c.root)})
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hinted{localError{fmt.Errorf("address %s: %w", c.address, err)},
			"The socket is for root and for the group that serve --group names."}
	case ctx.Err() != nil && err != nil:
		return ctx.Err()
	case err != nil:
		return cause.Default(fmt.Errorf("address %s: %w", c.address, err), cause.NoDaemon, "")
	}
	defer daemon.Close()
	if c.root != "" {
		root, err := filepath.Abs(c.root)
		if err != nil {
			return err
		}
		if !daemon.Serves(root) {
			return usageError{fmt.Errorf("--root %s: the daemon at %s has the root %s", root, c.address, daemon.Root())}
		}
	}
	if err = f(daemon); errors.Is(err, admin.ErrSilent) {
		return fmt.Errorf("address %s: %w", c.address, err)
	}
	return err
}

// ownersOf returns the owner of a root that an ordinary user named beside an address, because a daemon of
// that owner may serve a group. For uid 0 it returns nothing: uid 0 trusts only processes of uid 0, so that
// no other user gets its passwords.
func ownersOf(root string) []uint32 {
	var st unix.Stat_t
	if root == "" || os.Geteuid() == 0 || unix.Stat(root, &st) != nil {
		return nil
	}
	return []uint32{st.Uid}
}

// chooseRoot returns the root of the commands other than serve. For uid 0 it is the daemon's, also while no
// daemon runs: a command that then took another root would find nothing there, and pull everything again.
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

// daemonRoot returns the root of the daemon that the configuration of serve describes; "" if that daemon neither runs
// nor ever ran.
func (c *cli) daemonRoot(ctx context.Context) (string, error) {
	s, err := c.settingsFor(ctx, true)
	if err != nil {
		return "", err
	}
	address := first(s.Address, defaultAddress)
	switch daemon, err := admin.Dial(ctx, address, nil); {
	case err == nil:
		defer daemon.Close()
		return daemon.Root(), nil
	case cause.Of(err).Kind != "":
		return "", fmt.Errorf("address %s: %w", address, err)
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
