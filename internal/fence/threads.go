package fence

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// goThreads is how many threads the Go runtime makes before it ends the process.
const goThreads = 10000

// Threads returns how many threads this process may still make. Work that waits for a disk has one
// each, and the Go runtime ends the process when it cannot make another one.
func Threads() int {
	room := goThreads
	var limit unix.Rlimit
	// The limit of a user does not hold for root, and counts the threads of all its processes.
	if unix.Geteuid() != 0 && unix.Getrlimit(unix.RLIMIT_NPROC, &limit) == nil && limit.Cur < uint64(room) {
		room = int(limit.Cur)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return room
	}
	for _, dir := range pidsGroups(groups) {
		if most, ok := number(filepath.Join(dir, "pids.max")); ok {
			used, _ := number(filepath.Join(dir, "pids.current"))
			room = min(room, max(most-used, 0))
		}
	}
	return room
}

// pidsGroups returns the directories of the control groups that limit the threads of a process whose
// /proc/PID/cgroup has this text: its own group and the groups above.
func pidsGroups(text []byte) (dirs []string) {
	const base = "/sys/fs/cgroup"
	for line := range bytes.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(parts) != 3 {
			continue
		}
		top := base
		switch controllers := strings.Split(parts[1], ","); {
		case parts[1] == "":
		case len(controllers) == 1 && controllers[0] == "pids":
			top = filepath.Join(base, "pids")
		default:
			continue
		}
		for dir := filepath.Clean("/" + parts[2]); ; dir = filepath.Dir(dir) {
			dirs = append(dirs, filepath.Join(top, dir))
			if dir == "/" {
				break
			}
		}
	}
	return dirs
}

// number reads a number from a file. ok is false if there is none, as in `max`.
func number(name string) (n int, ok bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}
