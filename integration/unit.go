package integration

import (
	"path/filepath"
)

// unitFile returns the path of Tank's unit for systemd.
func unitFile() string {
	return filepath.Join(moduleDir(), "..", "contrib", "systemd", "tank-snapshotter.service")
}

// unitArgs returns the arguments that go before a program and its arguments, to run it with what Tank's unit allows.
func (e *Env) unitArgs() []string {
	e.t.Helper()
	requireProgram(e.t, "systemd-analyze") // in Debian's package systemd; it lists the groups of system calls
	sandbox, err := sandboxProgram()
	if err != nil {
		e.t.Fatalf("sandbox: %v", err)
	}
	return []string{sandbox, unitFile()}
}
