// Kit gives scripts, `make demo` above all, the parts of the integration tests that start no process of their own.
//
//	kit build DIR                       builds containerd, ctr, containerd-shim-runc-v2 and registry into DIR, where missing
//	kit registry BIN DIR ADDR           becomes the registry BIN/registry with its files in DIR, listening on ADDR (host:port)
//	kit push LAYOUT REF URL NAME        pushes the image REF of an OCI layout to http://host:port as NAME (repository:tag)
//	kit busybox BUSYBOX LAYOUT REF      adds an image with that static busybox to an OCI layout
//	kit own LAYOUT                      writes the tests' own images (own:1, own:corner, pause:1) into an OCI layout
//	kit containerd DIR DROPIN REGISTRY  writes DIR/config.toml and DIR/hosts for a containerd with Tank's drop-in, whose socket is
//	                                    DIR/c.sock, and to which registry.test is the registry at REGISTRY (host:port)
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tank-snapshotter/tank/integration"
)

var errUsage = errors.New("usage: kit build DIR | registry BIN DIR ADDR | push LAYOUT REF URL NAME | busybox BUSYBOX LAYOUT REF | " +
	"own LAYOUT | containerd DIR DROPIN REGISTRY")

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kit:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	want := map[string]int{"build": 2, "registry": 4, "push": 5, "busybox": 4, "own": 2, "containerd": 4}
	if len(args) == 0 || want[args[0]] != len(args) {
		return errUsage
	}
	switch args[0] {
	case "build":
		_, err := integration.BuildInto(args[1])
		return err
	case "registry":
		return registry(args[1], args[2], args[3])
	case "push":
		return integration.Push(args[1], args[2], args[3], args[4])
	case "busybox":
		return busybox(args[1], args[2], args[3])
	case "own":
		return integration.WriteOwnImages(args[1])
	default:
		return containerd(args[1], args[2], args[3])
	}
}

// registry replaces this process, so that the script's $! is the registry's.
func registry(bin, dir, addr string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(integration.RegistryConfig(filepath.Join(dir, "data"), addr)), 0o644); err != nil {
		return err
	}
	program := filepath.Join(bin, "registry")
	return syscall.Exec(program, []string{program, "serve", config}, append(os.Environ(), "OTEL_TRACES_EXPORTER=none"))
}

func busybox(program, layout, ref string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	img, err := integration.BusyboxImage(b)
	if err != nil {
		return err
	}
	return integration.WriteLayout(layout, map[string]integration.BuiltImage{ref: img})
}

func containerd(dir, dropIn, registry string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if dropIn, err = filepath.Abs(dropIn); err != nil {
		return err
	}
	if err := integration.WriteHosts(filepath.Join(dir, "hosts"), registry); err != nil {
		return err
	}
	config := integration.ContainerdConfig(dir, integration.ContainerdOptions{Import: dropIn})
	return os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o644)
}
