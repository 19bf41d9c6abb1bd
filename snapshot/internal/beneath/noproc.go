package beneath

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// viaProc calls fn with a path of the inode that leads through /proc. It is for system calls that take neither a
// directory descriptor nor flags. If /proc is not mounted, it calls fn with the bare name, in a thread whose working
// directory is FD.
func (t Inode) viaProc(fn func(path string) error) error {
	err := fn(t.proc())
	if err != unix.ENOENT {
		return err
	}
	var st unix.Stat_t
	if t.Stat(&st) != nil {
		return err // the inode itself is missing
	}
	return inDirectory(t.FD, func() error { return fn(t.Name) })
}

// inDirectory calls fn in a thread of its own whose working directory is dir. Other threads keep their working
// directory.
func inDirectory(dir int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it is never unlocked, so that the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Fchdir(dir)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}
