package proof

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace is set in the environment of the process that has a mount namespace of its own.
const inNamespace = "TANK_PROOF_NAMESPACE"

// TestMain runs the tests in a mount namespace of their own. Otherwise another process of the machine that makes a
// namespace at the wrong moment keeps a copy of the mounted disk, and a disk without power can't be mounted again.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(inNamespace) == "" {
		err := enterNamespace()
		fmt.Fprintln(os.Stderr, "enter a mount namespace:", err) // not reached after a success
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// enterNamespace starts this program again, in the same process.
func enterNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inNamespace+"=1"))
}
