// Package systemd talks to a service manager: it sends notifications, feeds the watchdog, and takes the
// socket that the manager passes.
//
// It owns nothing on disk.
//
// Its invariant: without a service manager, which is when the environment has none of its variables, every function
// does nothing.
//
// The surprising rule: Socket can be called once only, because it removes the variables that describe the socket.
package systemd

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

// Notify sends a state to the service manager, if there is one (sd_notify(3)). It only logs an error: that
// the manager can't be reached is no reason to stop serving.
func Notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithError(err).Warn("sd_notify")
	}
}

// ExtendTimeout asks the service manager for more time to start or to stop, counted from now.
func ExtendTimeout(ctx context.Context, by time.Duration) {
	Notify(ctx, "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(by.Microseconds(), 10))
}

// Watchdog notifies the service manager that this process works, as long as probe returns nil. It does so six
// times in the interval after which the manager would kill the process. A probe may take two thirds of that
// interval, so a busy disk does not make a process look dead. Watchdog returns when ctx ends, or at once if
// the manager has no watchdog.
func Watchdog(ctx context.Context, probe func(context.Context) error) {
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
		// If a probe takes all its time and fails, the next one can still succeed before the interval ends.
		trying, cancel := context.WithTimeout(ctx, within*2/3)
		err := probe(trying)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.G(ctx).WithError(err).Error("watchdog: the daemon does not work")
		default:
			Notify(ctx, daemon.SdNotifyWatchdog)
		}
	}
}

// Socket returns the socket that the service manager listens on for this process, nil if there is none
// (sd_listen_fds(3)). It removes the variables about it from the environment. errdefs.ErrInvalidArgument for anything
// but one listening unix stream socket.
func Socket() (*net.UnixListener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		activation.Files(true) // the variables are for another process: only remove them
		return nil, nil
	}
	count := os.Getenv("LISTEN_FDS")
	if n, err := strconv.Atoi(count); err != nil || n != 1 {
		activation.Files(true)
		return nil, fmt.Errorf("socket activation: LISTEN_FDS=%q: one socket is expected: %w", count,
			errdefs.ErrInvalidArgument)
	}
	file := activation.Files(true)[0]
	defer file.Close() // the listener has a duplicate
	if on, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("socket activation: descriptor %s: not a listening socket: %w", file.Name(),
			errors.Join(err, errdefs.ErrInvalidArgument))
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("socket activation: descriptor %s: %w: %w", file.Name(), err, errdefs.ErrInvalidArgument)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("socket activation: descriptor %s: a %s socket, not a unix stream socket: %w",
			file.Name(), l.Addr().Network(), errdefs.ErrInvalidArgument)
	}
	return unixListener, nil
}
