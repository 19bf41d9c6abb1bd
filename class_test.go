package tank_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
)

// TestErrorsHaveClasses calls each exported function so that it fails, and checks the class of its error.
func TestErrorsHaveClasses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	tk, err := tank.Open(filepath.Join(t.TempDir(), "root"), nil)
	must(t, err)
	must(t, tk.Close()) // from here on, every call fails
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	functions := map[string]func() error{
		"Open":         func() error { return second(tank.Open(file, nil)) },
		"Rebuild":      func() error { return second(tank.Rebuild(ctx, file, nil)) },
		"Clone":        func() error { return tank.Clone(ctx, file+"/none", file+"/to") },
		"Tank.Pull":    func() error { return second(tk.Pull(ctx, "x:1", &tank.PullOptions{Offline: true})) },
		"Tank.Images":  func() error { return second(tk.Images(ctx)) },
		"Tank.Inspect": func() error { return second(tk.Inspect(ctx, "x:1")) },
		"Tank.Remove":  func() error { return tk.Remove(ctx, "x:1") },
		"Tank.GC":      func() error { return second(tk.GC(ctx)) },
		"Tank.Check":   func() error { return tk.Check(ctx, func(tank.Fault) {}) },
		"Tank.Repair":  func() error { return second(tk.Repair(ctx, &tank.RepairOptions{Offline: true})) },
		"Tank.Holders": func() error { return second(tk.Holders(ctx)) },
		"Tank.Release": func() error { return second(tk.Release(ctx, "containerd", nil)) },
		"Tank.Probe":   func() error { return tk.Probe(ctx) },
		"Fault.Unwrap": func() error { return tank.Fault{}.Unwrap() },
	}
	errclasstest.Complete(t, ".", functions, map[string]string{
		"layerBlobs.Open": "passes on the errors of content and of containerd",
		"Tank.Spend":      "returns the error of its function",
		"Tank.Close":      "fails only if the disk does, which the packages below show",
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
