//go:build !(386 || arm || mips || mipsle)

package beneath

// timespec returns a time unchanged: on this architecture the system call takes 64 bits.
func timespec(sec, nsec int64) (int64, int64) { return sec, nsec }
