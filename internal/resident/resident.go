// Package resident keeps memory that is a part of a file in memory.
//
// It owns nothing on disk.
//
// Its invariant: what was locked is read without the disk. A goroutine that waits for the disk in a page
// fault, and not in a system call, keeps its processor from Go's scheduler, and the garbage collector waits
// for that goroutine: the whole process stands still.
//
// The surprising rule: the kernel may refuse to lock memory (CAP_IPC_LOCK, RLIMIT_MEMLOCK). That is no
// reason not to serve, so callers only log it.
package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Lock reads the pages of a mapping into memory and keeps them there until they are unmapped.
func Lock(address, size uintptr) error {
	if size == 0 {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_MLOCK, address, size, 0); errno != 0 {
		return os.NewSyscallError("mlock", errno)
	}
	return nil
}

// Program locks the code and the constants of this program, which the kernel otherwise reads from its file when they
// are needed. It returns how many bytes it locked.
func Program() (bytes uint64, err error) {
	file, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	maps, err := mappings(f, file)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, m := range maps {
		if err := Lock(m.from, m.end-m.from); err != nil {
			errs = append(errs, err)
			continue
		}
		bytes += uint64(m.end - m.from)
	}
	return bytes, errors.Join(errs...)
}

// mapping is a range of addresses.
type mapping struct{ from, end uintptr }

// mappings lists the mappings of a file that are never written to, from a text like /proc/self/maps.
func mappings(text io.Reader, file string) (ms []mapping, err error) {
	for s := bufio.NewScanner(text); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 6 || strings.Join(fields[5:], " ") != file || strings.Contains(fields[1], "w") {
			continue
		}
		from, end, _ := strings.Cut(fields[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("maps: %w", err)
		}
		b, err := strconv.ParseUint(end, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("maps: %w", err)
		}
		ms = append(ms, mapping{uintptr(a), uintptr(b)})
	}
	return ms, nil
}
