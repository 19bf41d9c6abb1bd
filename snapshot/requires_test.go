package snapshot_test

import (
	"os"
	"testing"
)

// requireRoot skips a test that needs root's rights; in CI nothing may skip.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and in CI nothing may skip")
	}
	t.Skip("needs root")
}

// requireMounts skips a test that mounts overlay.
func requireMounts(t *testing.T) {
	t.Helper()
	requireRoot(t)
}
