package fence

import (
	"slices"
	"testing"
)

// TestPidsGroups: the limits of a process's own control group and of those above hold, in both versions.
func TestPidsGroups(t *testing.T) {
	for text, want := range map[string][]string{
		"0::/system.slice/tank.service\n": {
			"/sys/fs/cgroup/system.slice/tank.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup",
		},
		"12:memory:/a\n5:pids:/a/b\n": {"/sys/fs/cgroup/pids/a/b", "/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"},
		"0::/\n":                      {"/sys/fs/cgroup"},
		"":                            nil,
		"nonsense\n":                  nil,
	} {
		if got := pidsGroups([]byte(text)); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
	if n := Threads(); n <= 0 || n > goThreads {
		t.Errorf("%d threads", n)
	}
}
