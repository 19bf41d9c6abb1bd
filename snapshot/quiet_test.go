package snapshot_test

import (
	"os"
	"testing"

	"github.com/containerd/log"
)

// TestMain keeps the warnings of background work, which foreground calls report as errors, out of the output.
func TestMain(m *testing.M) {
	if err := log.SetLevel("error"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
