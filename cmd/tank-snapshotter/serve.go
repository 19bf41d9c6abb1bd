package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
)

func (c *cli) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Serve containerd and the other commands until a signal comes",
		Long: "Serve containerd and the other commands until a signal comes.\n\nReads --config, else " + systemConfig +
			".\nThe root is --root, else the config's, else " + defaultRoot + ".\nThe socket is --address, else the config's, else " + defaultAddress + ".",
		Args: cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			s, err := c.settingsFor(true)
			if err != nil {
				return err
			}
			root, err := filepath.Abs(first(c.root, s.Root, defaultRoot))
			if err != nil {
				return err
			}
			address, err := filepath.Abs(first(c.address, s.Address, defaultAddress))
			if err != nil {
				return err
			}
			return c.serve(cmd.Context(), root, address, first(s.HostsDir, defaultHosts))
		}),
	}
}

func (c *cli) serve(ctx context.Context, root, address, hostsDir string) (err error) {
	own, err := awaitRoot(ctx, root, hostsDir)
	if err != nil {
		return err
	}
	defer func() {
		if e := own.Close(); err == nil {
			err = e
		}
	}()
	if err := os.MkdirAll(filepath.Dir(address), 0o711); err != nil {
		return localError{fmt.Errorf("address: %w", err)}
	}
	var listeners []net.Listener
	sockets := []string{filepath.Join(root, socketName)}
	if address != sockets[0] {
		sockets = append(sockets, address)
	}
	for _, socket := range sockets {
		l, release, err := listen(ctx, filepath.Dir(socket), filepath.Base(socket))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return localError{err}
		}
		defer release()
		listeners = append(listeners, l)
	}
	server := plugin.New(&plugin.Options{
		Content:     own.tank.Content().For(metadata.Containerd),
		Snapshotter: own.tank.Snapshots().For(metadata.Containerd),
		Layers:      own.tank.Snapshots(),
		Admin:       own,
	})
	log.G(ctx).WithFields(log.Fields{"root": root, "address": address}).Info("serving")
	if err := server.Serve(ctx, listeners...); err != nil {
		return localError{err}
	}
	return nil
}

// awaitRoot owns the root for a daemon, and gives a command that is working there time to end.
func awaitRoot(ctx context.Context, root, hostsDir string) (*local, error) {
	for deadline := time.Now().Add(patience); ; {
		own, err := openLocal(root, hostsDir, true)
		if !errdefs.IsUnavailable(err) {
			return own, err
		}
		if time.Now().After(deadline) {
			return nil, localError{err}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		}
	}
}
