package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestWatchdog: the service manager is not notified while the probe fails or hangs.
func TestWatchdog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify.sock")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	probes := 0
	Watchdog(ctx, func(ctx context.Context) error {
		switch probes++; probes {
		case 1:
			return errors.New("the database does not answer")
		case 2:
			<-ctx.Done() // hangs
			return ctx.Err()
		case 3:
			return nil
		}
		cancel()
		return nil
	})
	var heard []string
	for {
		if err := manager.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := manager.Read(b)
		if err != nil {
			break
		}
		heard = append(heard, string(b[:n]))
	}
	if !slices.Equal(heard, []string{"WATCHDOG=1"}) {
		t.Errorf("after %d probes: %q", probes, heard)
	}
}

// TestWatchdogOfBusy: a probe that takes half of the interval is quick enough for the service manager.
func TestWatchdogOfBusy(t *testing.T) {
	const within = 3 * time.Second
	socket := filepath.Join(t.TempDir(), "notify.sock")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(within.Microseconds()))
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go Watchdog(ctx, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(within / 2):
			return nil
		}
	})
	for n := range 2 {
		if err := manager.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		if _, err := manager.Read(make([]byte, 100)); err != nil {
			t.Fatalf("killed after %d answers: %v", n, err)
		}
	}
}
