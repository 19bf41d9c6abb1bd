package admin_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// TestErrorsHaveClasses calls each exported function so that it fails, and checks the class of its
// error. The client's process has ended.
func TestErrorsHaveClasses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tank.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- admin.Serve(ctx, l, fakeService{dir}, nil) }()
	c, err := admin.Dial(ctx, path, nil)
	must(t, err)
	defer c.Close()
	stop()
	must(t, <-served)
	ctx = t.Context()
	none := filepath.Join(dir, "none", "tank.sock")
	functions := map[string]func() error{
		"Dial":   func() error { _, err := admin.Dial(ctx, none, nil); return err },
		"Listen": func() error { _, err := admin.Listen(ctx, filepath.Dir(none)); return err },
		"Reach": func() error {
			return admin.Reach(ctx, "/dev/null", nil,
				func(tank.Service) error { return nil })
		},
		"Client.Pull":    func() error { _, err := c.Pull(ctx, "x:1", nil); return err },
		"Client.Images":  func() error { _, err := c.Images(ctx); return err },
		"Client.Inspect": func() error { _, err := c.Inspect(ctx, "x:1"); return err },
		"Client.Remove":  func() error { return c.Remove(ctx, "x:1") },
		"Client.GC":      func() error { _, err := c.GC(ctx); return err },
		"Client.Check":   func() error { return c.Check(ctx, func(tank.Fault) {}) },
		"Client.Repair":  func() error { _, err := c.Repair(ctx, &tank.RepairOptions{Offline: true}); return err },
		"Client.Holders": func() error { _, err := c.Holders(ctx); return err },
		"Client.Release": func() error { _, err := c.Release(ctx, "x", nil); return err },
	}
	errclasstest.Complete(t, ".", functions, map[string]string{
		"Serve":              "returns what gRPC says of the listener",
		"Client.Close":       "returns what gRPC says of a connection that was closed before",
		"codec.Marshal":      "gRPC gives the error a class",
		"codec.Unmarshal":    "gRPC gives the error a class",
		"remoteError.Unwrap": "is the class",
	})
	for name, call := range functions {
		t.Run(name, func(t *testing.T) {
			err := call()
			if err == nil {
				t.Error("no error")
			}
			errclasstest.Check(t, name, err)
		})
	}
}
