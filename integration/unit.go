package integration

import (
	"path/filepath"
)

// unitFile is Tank's unit for systemd.
func unitFile() string {
	return filepath.Join(moduleDir(), "..", "contrib", "systemd", "tank-snapshotter.service")
}

// unitArgs go before a program's arguments: it then runs with what Tank's unit allows.
func (e *Env) unitArgs() []string {
	e.t.Helper()
	requireProgram(e.t, "systemd-analyze") // of Debian's package systemd: it has the groups of system calls
	sandbox, err := sandboxProgram()
	if err != nil {
		e.t.Fatalf("sandbox: %v", err)
	}
	return []string{sandbox, unitFile()}
}
