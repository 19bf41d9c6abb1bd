//go:build !(386 || arm || mips || mipsle)

package beneath

func timespec(sec, nsec int64) (int64, int64) { return sec, nsec }
