package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/containerdconfig"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/internal/socket"
	"github.com/tank-snapshotter/tank/internal/systemd"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// stopWithin is how long serve may take to stop. What it then leaves undone, the next start finds out.
const stopWithin = time.Minute

func (c *cli) serveCommand() *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve containerd and the other commands until a signal comes",
		Long: "Serve containerd and the other commands until a signal comes.\n\nReads --config, else " + systemConfig +
			".\nThe root is --root, else the config's, else " + defaultRoot + ".\nThe socket is --address, else the config's, else " + defaultAddress +
			";\na socket that systemd passes is served in its place.",
		Args: cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			s, err := c.settingsFor(cmd.Context(), true)
			if err != nil {
				return err
			}
			s.Group = first(group, s.Group)
			s.HostsDir = first(s.HostsDir, defaultHosts)
			if s.Root, err = filepath.Abs(first(c.root, s.Root, defaultRoot)); err != nil {
				return err
			}
			if s.Address, err = filepath.Abs(first(c.address, s.Address, defaultAddress)); err != nil {
				return err
			}
			return serve(cmd.Context(), s, &c.ending)
		}),
	}
	cmd.Flags().StringVar(&group, "group", "", "group whose members may open the socket, by name or number (default: nobody else may)")
	return cmd
}

// serve serves the root of s until ctx ends. It ends the process itself, without the deadline for other commands.
func serve(ctx context.Context, s settings, end *ending) (err error) {
	group, err := socket.FindGroup(s.Group)
	if err != nil {
		return err
	}
	passed, err := systemd.Socket()
	if err != nil {
		return localError{err}
	}
	opts, release, err := s.options()
	if err != nil {
		return err
	}
	defer release()
	root, err := awaitRoot(ctx, s, opts)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() {
		if e := root.Close(); err == nil {
			err = e
		}
	}()
	if err := root.Snapshots().CheckOverlay(); err != nil {
		return localError{err}
	}
	var opened []*socket.Listener
	err = root.Spend(func() (err error) {
		opened, err = listeners(ctx, s, group, passed)
		return err
	})
	if err != nil {
		return localError{err}
	}
	root.KeepReserve()
	server := plugin.New(&plugin.Options{
		Binder: root.Binder(), StoresOf: storesOf(root, opts.Containerd == nil), Layers: root.Snapshots(),
		Processors: s.processors(),
		More: func(to grpc.ServiceRegistrar) {
			admin.Register(to, root, &admin.ServeOptions{HostsDir: s.HostsDir})
		},
	})
	end.inOrder.Store(true)
	told := make(chan struct{})
	never := context.AfterFunc(ctx, func() {
		defer close(told)
		stopping(ctx)
	})
	defer func() {
		if !never() {
			<-told // before the process is gone
		}
	}()
	watch, done := context.WithCancel(ctx)
	defer done()
	sockets := make([]net.Listener, len(opened))
	var paths []string
	for i, l := range opened {
		sockets[i] = l
		if l.HasFile() {
			paths = append(paths, l.File())
			go l.Watch(watch)
		}
	}
	go systemd.Watchdog(watch, func(ctx context.Context) error { return alive(ctx, root, paths) })
	log.G(ctx).WithFields(log.Fields{"root": s.Root, "address": sockets[len(sockets)-1].Addr()}).Info("serving")
	// The sockets are bound, and what comes before the server accepts waits in their backlogs.
	systemd.Notify(ctx, daemon.SdNotifyReady)
	if err := server.Serve(ctx, sockets...); err != nil {
		return localError{err}
	}
	return nil
}

// alive checks that a root is served: this process answers at every socket, as others reach it, and the database
// answers a reader and a writer.
func alive(ctx context.Context, t *tank.Tank, sockets []string) error {
	for _, socket := range sockets {
		self, err := admin.Dial(ctx, socket, nil)
		if err != nil {
			return err
		}
		root := self.Root()
		self.Close()
		if root != t.Root() {
			return fmt.Errorf("socket %s: another process answers, for the root %s: %w", socket, root, errdefs.ErrUnavailable)
		}
	}
	return t.Probe(ctx)
}

// storesOf returns what the daemon serves to a containerd that acts for a holder.
func storesOf(t *tank.Tank, content bool) func(metadata.Holder) plugin.Stores {
	return func(h metadata.Holder) plugin.Stores {
		s := plugin.Stores{Snapshotter: t.Snapshots().For(h)}
		if content {
			s.Content = t.Content().For(h)
		}
		return s
	}
}

// stopping tells that a signal came, and ends the process when stopping in order takes too long.
func stopping(ctx context.Context) {
	// Before the log entry, because writing to a log that nobody reads may block.
	time.AfterFunc(stopWithin, func() { giveUp("not stopped within "+stopWithin.String()+": giving up", exitOther) })
	systemd.Notify(ctx, daemon.SdNotifyStopping)
	systemd.ExtendTimeout(ctx, stopWithin+stopWithin/2)
	log.G(ctx).Info("stopping")
}

// listeners opens the admin socket below the root and, unless passed stands for it, the one at the address, which comes last.
func listeners(ctx context.Context, s settings, group *socket.Group, passed *net.UnixListener) (opened []*socket.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range opened {
				l.Close()
			}
		}
	}()
	inRoot := filepath.Join(s.Root, admin.SocketName)
	l, err := socket.Listen(ctx, s.Root, admin.SocketName, nil)
	if err != nil {
		return nil, err
	}
	opened = append(opened, l)
	if passed != nil {
		if group != nil {
			log.G(ctx).WithField("group", s.Group).Warn("systemd opened the socket: set SocketGroup= in the socket unit instead of a group here")
		}
		return append(opened, socket.Adopt(ctx, passed)), nil
	}
	if s.Address == inRoot {
		if group != nil {
			return opened, fmt.Errorf("socket %s: the root's own socket is not for a group: %w",
				inRoot, errdefs.ErrInvalidArgument)
		}
		return opened, nil
	}
	dir := filepath.Dir(s.Address)
	makeDir := func(ctx context.Context) error {
		if err := socket.MakeDir(ctx, dir, group); err != nil {
			return fmt.Errorf("address: %w", err)
		}
		return nil
	}
	if err := makeDir(ctx); err != nil {
		return opened, err
	}
	l, err = socket.Listen(ctx, dir, filepath.Base(s.Address), &socket.Options{Group: group, MakeDir: makeDir})
	if err != nil {
		return opened, err
	}
	return append(opened, l), nil
}

// options are those of the daemon's root. release ends what they hold, after the root was closed.
func (s settings) options() (opts *tank.Options, release func(), err error) {
	opts = &tank.Options{Daemon: true, Directory: s.Mode == modeDirectory, SkipKnownBlobs: s.SkipKnownBlobs}
	if s.ContainerdAddress == "" {
		return opts, func() {}, nil
	}
	c, err := plugin.DialContainerd(s.ContainerdAddress, nil) // which may start later than this daemon
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("config: containerd_address: %w", err)}
	}
	opts.Containerd = c
	return opts, func() { c.Close() }, nil
}

// awaitRoot owns the root for a daemon, and gives a command that is working there time to end.
func awaitRoot(ctx context.Context, s settings, opts *tank.Options) (*tank.Tank, error) {
	systemd.ExtendTimeout(ctx, 2*patience)
	for deadline := time.Now().Add(patience); ; {
		t, err := openRoot(s.Root, opts)
		if !errdefs.IsUnavailable(err) {
			return t, err
		}
		if time.Now().After(deadline) {
			return nil, localError{err}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// processors returns what plugin.Options.Processors is: the processors of Tank's own config, or those of the config
// that the calling containerd was started with.
func (s settings) processors() func(context.Context, peer.Process) ([]processor.Processor, error) {
	if s.StreamProcessors != nil {
		own := containerdconfig.Sorted(s.StreamProcessors)
		return func(context.Context, peer.Process) ([]processor.Processor, error) { return own, nil }
	}
	return containerdconfig.ProcessorsOf
}
