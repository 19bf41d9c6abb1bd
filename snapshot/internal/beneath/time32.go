//go:build 386 || arm || mips || mipsle

package beneath

import "math"

// timespec limits a time to the range of the system call on this architecture.
func timespec(sec, nsec int64) (int32, int32) {
	return int32(min(max(sec, math.MinInt32), math.MaxInt32)), int32(nsec)
}
