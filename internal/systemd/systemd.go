package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// tellSystemd sends a line of sd_notify(3), if a service manager asked for it. One that can't be told is no reason to stop serving.
func tellSystemd(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("sd_notify")
	}
}

// extendTimeout asks the service manager for this much more time to start, or to stop.
func extendTimeout(ctx context.Context, by time.Duration) {
	tellSystemd(ctx, "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(by.Microseconds(), 10))
}

// watchdog tells the service manager that this process is alive, six times as often as it asks for, as long as probe says so. A probe may
// take two thirds of the time that the manager gives: a disk that is busy makes no dead daemon. It returns when ctx ends, or at once when nobody
// asks.
func watchdog(ctx context.Context, probe func(context.Context) error) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.G(ctx).WithError(err).Warn("watchdog")
	}
	if within <= 0 {
		return
	}
	tick := time.NewTicker(within / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A probe that just fails leaves the next one time to be told of.
		trying, cancel := context.WithTimeout(ctx, within*2/3)
		err := probe(trying)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.G(ctx).WithError(err).Error("watchdog: not well")
		default:
			tellSystemd(ctx, daemon.SdNotifyWatchdog)
		}
	}
}

// activated returns the socket that the service manager listens on for us, nil when it does not (sd_listen_fds(3)), and takes what names it
// out of the environment. errdefs.ErrInvalidArgument for anything but one listening unix stream socket.
func activated() (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		activation.Files(true) // another process's: only unset
		return nil, nil
	}
	count := os.Getenv("LISTEN_FDS")
	if n, err := strconv.Atoi(count); err != nil || n != 1 {
		activation.Files(true)
		return nil, fmt.Errorf("socket activation: LISTEN_FDS=%q: one socket is expected: %w", count, errdefs.ErrInvalidArgument)
	}
	file := activation.Files(true)[0]
	defer file.Close() // the listener has a duplicate
	if on, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("socket activation: descriptor %s: not a listening socket: %w", file.Name(), errors.Join(err, errdefs.ErrInvalidArgument))
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket activation: descriptor %s: %w: %w", file.Name(), err, errdefs.ErrInvalidArgument)
	}
	if l.Addr().Network() != "unix" {
		l.Close()
		return nil, fmt.Errorf("socket activation: descriptor %s: a %s socket, not a unix stream socket: %w",
			file.Name(), l.Addr().Network(), errdefs.ErrInvalidArgument)
	}
	return l, nil
}
