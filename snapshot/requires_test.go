package snapshot_test

import (
	"os"
	"testing"
)

// requireRoot skips a test that needs root. In CI the test fails.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and no test may be skipped in CI")
	}
	t.Skip("needs root")
}

// requireMounts skips a test that mounts file systems, which needs root. In CI the test fails.
func requireMounts(t *testing.T) {
	t.Helper()
	requireRoot(t)
}
