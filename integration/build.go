package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
)

// Pinned is the version of containerd in go.mod. Tests use it unless they name another one.
const Pinned = "2.4.2"

// programs are the packages that Build makes, pinned by go.mod through tools.go.
var programs = map[string]string{
	"containerd":              "github.com/containerd/containerd/v2/cmd/containerd",
	"ctr":                     "github.com/containerd/containerd/v2/cmd/ctr",
	"containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
	"registry":                "github.com/distribution/distribution/v3/cmd/registry",
}

// Build returns the absolute directory of the programs and builds those that are missing there:
// $TANK_TEST_BIN, else .bin beside this file. Existing programs are not checked: the directory's name has the
// versions in go.mod, so that a new pin is a new directory.
var Build = sync.OnceValues(func() (string, error) { return buildInto(binDir()) })

// buildInto is Build with another directory.
func buildInto(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// The packages of this module are tested at the same time, and the builds take minutes.
	lock, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", dir, err)
	}
	for name, pkg := range programs {
		out := filepath.Join(dir, name)
		if _, err := os.Stat(out); err == nil {
			continue
		}
		if err := goBuild(moduleDir(), out, pkg, "-tags", containerdTags); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// containerdTags leave out the parts of containerd that need cgo, and parts that no test uses.
const containerdTags = "no_btrfs no_devmapper no_zfs"

// BuildContainerd returns the absolute directory of containerd, ctr and the shim of a version, as
// "2.3.7". Those of another version than Pinned come from the Go module proxy with what their own
// go.mod pins, all at once or not at all.
func BuildContainerd(version string) (string, error) {
	pinned, err := Build()
	if err != nil || version == Pinned {
		return pinned, err
	}
	building.Lock()
	defer building.Unlock()
	dir := filepath.Join(filepath.Dir(pinned), "containerd-"+version)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "containerd-"+version+".")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	args := []string{"install", "-trimpath", "-tags", containerdTags}
	for name, pkg := range programs {
		if name != "registry" {
			args = append(args, pkg+"@v"+version)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(buildEnv(), "GOBIN="+tmp)
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install containerd %s: %w\n%s", version, err, b)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) { // of another process meanwhile
		return "", err
	}
	return dir, nil
}

// BuildUmoci returns the path of the umoci that umoci/go.mod pins, beside the other programs.
var BuildUmoci = sync.OnceValues(func() (string, error) {
	out, err := filepath.Abs(filepath.Join(binDir(), "umoci-"+umociVersion))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	return out, goBuild(filepath.Join(moduleDir(), "umoci"), out, "github.com/opencontainers/umoci/cmd/umoci")
})

// umociVersion is the version in umoci/go.mod.
const umociVersion = "0.6.0"

// building is held while a version of containerd is built.
var building sync.Mutex

// Tank builds Tank's own binary from the parent directory, unless $TANK_BINARY names one, and returns its path.
var Tank = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("TANK_BINARY"); b != "" {
		return filepath.Abs(b)
	}
	out := filepath.Join(moduleDir(), ".bin", "tank-snapshotter")
	return out, goBuild(filepath.Dir(moduleDir()), out, "./cmd/tank-snapshotter")
})

// HelloProgram is the program inside the tests' own image (testdata/hello).
func HelloProgram() ([]byte, error) { return testProgram() }

// testProgram builds testdata/hello, the program inside the tests' own image: static and the same bytes
// on every machine.
var testProgram = sync.OnceValues(func() ([]byte, error) {
	out := filepath.Join(moduleDir(), ".bin", "hello")
	if err := goBuild(moduleDir(), out, "./testdata/hello", "-ldflags", "-s -w -buildid="); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
})

// injectProgram builds ./inject, which makes a system call of a program fail.
var injectProgram = sync.OnceValues(func() (string, error) {
	out := filepath.Join(moduleDir(), ".bin", "inject")
	return out, goBuild(moduleDir(), out, "./inject")
})

// sandboxProgram builds ./sandbox, which runs a program with what a unit for systemd allows.
var sandboxProgram = sync.OnceValues(func() (string, error) {
	out := filepath.Join(moduleDir(), ".bin", "sandbox")
	return out, goBuild(moduleDir(), out, "./sandbox")
})

// TrapProgram builds ./trap, which runs a program whose syncs wait for another process.
var TrapProgram = sync.OnceValues(func() (string, error) {
	out := filepath.Join(moduleDir(), ".bin", "trap")
	return out, goBuild(moduleDir(), out, "./trap")
})

// goBuild builds pkg, as seen from the module in dir, into out, by a rename, so that a running program
// is never overwritten.
func goBuild(dir, out, pkg string, flags ...string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d", out, os.Getpid())
	args := append([]string{"build", "-trimpath", "-o", tmp}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = buildEnv()
	if b, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return os.Rename(tmp, out)
}

func buildEnv() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
}

func binDir() string {
	if d := os.Getenv("TANK_TEST_BIN"); d != "" {
		return d
	}
	return filepath.Join(moduleDir(), ".bin", "containerd-"+Pinned+"-registry-3.1.2")
}

// moduleDir is where this module's go.mod lies.
func moduleDir() string {
	_, file, _, ok := runtime.Caller(0)
	if ok {
		if _, err := os.Stat(file); err == nil {
			return filepath.Dir(file)
		}
	}
	wd, err := os.Getwd() // built with -trimpath: go test runs in the package's directory
	if err != nil {
		panic(err)
	}
	for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	panic("no go.mod above " + wd)
}
