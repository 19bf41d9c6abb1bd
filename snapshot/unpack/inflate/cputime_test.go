package inflate_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

func processTime(tb testing.TB) int64 {
	tb.Helper()
	var used unix.Rusage
	must(tb, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return used.Utime.Nano() + used.Stime.Nano()
}
