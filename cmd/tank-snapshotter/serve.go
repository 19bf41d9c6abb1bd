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
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/containerdconfig"
	"github.com/tank-snapshotter/tank/internal/fence"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/internal/resident"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/internal/socket"
	"github.com/tank-snapshotter/tank/internal/systemd"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// stopWithin is how long serve may take to stop. Then it ends at once; the next start finds and finishes what
// is left.
const stopWithin = time.Minute

func (c *cli) serveCommand() *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve containerd and the other commands until a signal comes",
		Long: "Serve containerd and the other commands until a signal comes.\n\n" +
			"The config is --config, else " + systemConfig + ".\n" +
			"The root is --root, else the config's, else " + defaultRoot + ".\n" +
			"The socket is one that systemd passes, else --address, else the config's, else\n" + defaultAddress + ".",
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
			defer queueLogs()()
			return serve(cmd.Context(), s, &c.ending)
		}),
	}
	cmd.Flags().StringVar(&group, "group", "",
		"group whose members may open the socket, by name or number (default: only this user may)")
	return cmd
}

// serve serves the root of s until ctx ends. From then on it ends the process itself after stopWithin, so the
// shorter limit of other commands does not apply.
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
		Binder: root.Binder(), StoresOf: storesOf(root, opts.Containerd == nil), Layers: root.Snapshots().Layers(),
		Applier:    root.Snapshots(),
		Processors: s.processors(),
		Disk:       disksOf(s.Root),
		Copies:     opts.Directory,
		More: func(to grpc.ServiceRegistrar) {
			admin.Register(to, root, &admin.ServeOptions{HostsDir: s.HostsDir})
		},
	})
	if _, err := resident.Program(); err != nil {
		log.G(ctx).WithError(err).Warn("the program is not locked in memory (LimitMEMLOCK=): " +
			"when memory is short and its disk stands still, the daemon does so as well")
	}
	end.inOrder.Store(true)
	notified := make(chan struct{})
	notStopping := context.AfterFunc(ctx, func() {
		defer close(notified)
		stopping(ctx)
	})
	defer func() {
		if !notStopping() {
			<-notified // so that the process does not end before
		}
	}()
	watch, done := context.WithCancel(ctx)
	defer done()
	sockets := make([]net.Listener, len(opened))
	alive := &liveness{root: root.Root(), answers: server.Answers, database: root.Probe}
	for i, l := range opened {
		sockets[i] = l
		if l.HasFile() {
			alive.sockets = append(alive.sockets, newProbed(l.File()))
			go l.Watch(watch)
		}
	}
	go systemd.Watchdog(watch, alive.check)
	log.G(ctx).WithFields(log.Fields{"root": s.Root, "address": sockets[len(sockets)-1].Addr()}).Info("serving")
	// The sockets are bound. Connections that come before the server accepts them wait in the backlog.
	systemd.Notify(ctx, "STATUS=Serving "+printable.Text(s.Root))
	systemd.Notify(ctx, daemon.SdNotifyReady)
	if err := server.Serve(ctx, sockets...); err != nil {
		return localError{err}
	}
	return nil
}

// disksOf returns what grows while the disks of a root complete requests. Each pool may be a disk of its own.
func disksOf(root string) func() uint64 {
	paths := []string{root}
	for _, pool := range []string{
		rootdir.Blobs, rootdir.Ingest, rootdir.Layers, rootdir.Rootfs, rootdir.Snapshots,
	} {
		paths = append(paths, filepath.Join(root, pool))
	}
	return fence.Disks(paths...)
}

// storesOf returns a function that returns the stores which the daemon serves to a containerd that acts for a
// holder. They include a content store only if content is true.
func storesOf(t *tank.Tank, content bool) func(metadata.Holder) plugin.Stores {
	return func(h metadata.Holder) plugin.Stores {
		s := plugin.Stores{Snapshotter: t.Snapshots().For(h)}
		if content {
			s.Content = t.Content().For(h)
		}
		return s
	}
}

// stopping notifies the service manager that the daemon stops, and ends the process if that takes too long.
func stopping(ctx context.Context) {
	// The timer is started first, because writing a log entry blocks if nobody reads the log.
	time.AfterFunc(stopWithin, func() { giveUp("not stopped within "+stopWithin.String()+": giving up", exitOther) })
	systemd.Notify(ctx, daemon.SdNotifyStopping)
	systemd.ExtendTimeout(ctx, stopWithin+stopWithin/2)
	log.G(ctx).Info("stopping")
}

// listeners opens the admin socket below the root and the socket at the address. The latter is last in the
// list. If the service manager passed a socket, that replaces the socket at the address.
func listeners(ctx context.Context, s settings, group *socket.Group, passed *net.UnixListener) (
	opened []*socket.Listener, err error,
) {
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
			log.G(ctx).WithField("group", s.Group).
				Warn("systemd opened the socket: set SocketGroup= in the socket unit instead of a group here")
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

// options returns the options of the daemon's root. The caller calls release after it closed the root.
func (s settings) options() (opts *tank.Options, release func(), err error) {
	opts = &tank.Options{
		Daemon: true, Directory: s.Mode == modeDirectory, SkipKnownBlobs: s.SkipKnownBlobs,
		UnsyncedCommits: s.UnsyncedCommits,
	}
	if s.ContainerdAddress == "" {
		return opts, func() {}, nil
	}
	c, err := plugin.DialContainerd(s.ContainerdAddress, nil) // containerd may start later
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("config: containerd_address: %w", err)}
	}
	opts.Containerd = c
	return opts, func() { c.Close() }, nil
}

// awaitRoot opens the root for a daemon. It makes a lost or damaged database again first. If a command owns the
// root, it waits until the command ends, at most for patience.
func awaitRoot(ctx context.Context, s settings, opts *tank.Options) (*tank.Tank, error) {
	systemd.ExtendTimeout(ctx, 2*patience)
	for deadline := time.Now().Add(patience); ; {
		t, err := openRoot(s.Root, opts)
		if cause.Of(err).Kind == cause.Database {
			if err = rebuildRoot(ctx, s.Root, err); err == nil {
				t, err = openRoot(s.Root, opts)
			}
		}
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

// processors returns the function for plugin.Options.Processors. It returns the processors of Tank's own
// config, if that has a section for them, else those in the config of the calling containerd.
func (s settings) processors() func(context.Context, peer.Process) ([]processor.Processor, error) {
	if s.StreamProcessors != nil {
		own := containerdconfig.Sorted(s.StreamProcessors)
		return func(context.Context, peer.Process) ([]processor.Processor, error) { return own, nil }
	}
	return containerdconfig.ProcessorsOf
}
