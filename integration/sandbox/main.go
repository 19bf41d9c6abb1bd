// Command sandbox runs a program as systemd would run it for a unit: with the unit's bounding set, file mode mask and
// system calls. It is for machines where systemd does not run.
//
//	sandbox UNIT PROGRAM [ARGUMENT...]
//
// It owns nothing on disk.
//
// Its invariant: it knows every setting of the unit's section [Service] and refuses to run a unit with any other, so
// that nobody adds a restriction to the unit that was not tried.
//
// The surprising rule: the members of a group of system calls, such as @system-service, come from systemd-analyze. A
// system call whose number this program does not know is refused even if the unit allows it, as with systemd.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sandbox UNIT PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	}
}

func run(unit string, argv []string) error {
	s, err := readUnit(unit)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	filter, err := s.filter()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the restrictions below apply to this thread; exec keeps them for the process
	if err := s.bound(); err != nil {
		return err
	}
	if s.umask >= 0 {
		unix.Umask(s.umask)
	}
	if s.noNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	if err := install(filter); err != nil {
		return err
	}
	return unix.Exec(path, argv, os.Environ())
}

// bound drops every capability that the unit does not keep.
func (s *settings) bound() error {
	if s.capabilities == nil {
		return nil
	}
	for c := range uintptr(64) {
		if slices.Contains(s.capabilities, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && c <= unix.CAP_LAST_CAP {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
}
