package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unitDir is the directory of the systemd units.
const unitDir = "../../contrib/systemd"

// readUnit returns the settings of a unit: the values of each "Section.Key", in the order of the file.
func readUnit(t *testing.T, name string) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(unitDir, name))
	if err != nil {
		t.Fatal(err)
	}
	settings, section := map[string][]string{}, ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		} else if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			settings[section+"."+key] = append(settings[section+"."+key], value)
		}
	}
	return settings
}

// TestUnit: the settings of the units fit what the daemon does.
func TestUnit(t *testing.T) {
	service, socket := readUnit(t, "tank-snapshotter.service"), readUnit(t, "tank-snapshotter.socket")
	for key, want := range map[string]string{
		"Unit.Before":       "containerd.service",
		"Service.Type":      "notify",
		"Service.ExecStart": "/usr/local/bin/tank-snapshotter serve",
		"Service.Restart":   "always",
		"Service.KillMode":  "process",
		"Service.CapabilityBoundingSet": "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_MKNOD " +
			"CAP_SETFCAP CAP_SYS_ADMIN",
		"Service.LimitNOFILE":      "infinity",
		"Service.RuntimeDirectory": filepath.Base(filepath.Dir(defaultAddress)),
	} {
		if got := service[key]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
	// containerd's own unit has -999.
	if score, err := strconv.Atoi(strings.Join(service["Service.OOMScoreAdjust"], "")); err != nil || score <= -999 {
		t.Errorf("OOMScoreAdjust=%d, %v: containerd is killed first", score, err)
	}
	if service["Service.WatchdogSec"] == nil {
		t.Error("no WatchdogSec=")
	}
	if got := socket["Socket.ListenStream"]; !slices.Equal(got, []string{defaultAddress}) {
		t.Errorf("ListenStream=%q", got)
	}
	// Each of these settings breaks something: setuid files, device nodes or whiteouts of images, the view of the
	// containers' mounts, or the start without a network.
	for _, forbidden := range []string{
		"RestrictSUIDSGID", "PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "ProtectSystem",
		"ProtectHome", "PrivateTmp",
		"PrivateMounts", "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups",
		"ProtectKernelLogs", "ReadOnlyPaths",
		"PrivateUsers", "DynamicUser", "User", "RestrictFileSystems",
		"ProtectProc", "ProcSubset", "RootDirectory", "MemoryMax", "MemoryHigh",
	} {
		if got := service["Service."+forbidden]; got != nil {
			t.Errorf("%s=%q", forbidden, got)
		}
	}
	for _, key := range []string{"Unit.After", "Unit.Wants", "Unit.Requires"} {
		if got := service[key]; got != nil {
			t.Errorf("%s=%q: what does the start wait for?", key, got)
		}
	}
}

// maxExposure is the highest exposure that `systemd-analyze security` may report.
const maxExposure = 5.0

// TestUnitSecurity checks how systemd rates the rights of the daemon.
func TestUnitSecurity(t *testing.T) {
	analyze := systemdAnalyze(t)
	out, err := exec.Command(analyze, "security", "--no-pager", "--offline=yes",
		filepath.Join(unitDir, "tank-snapshotter.service")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no level in\n%s", out)
	}
	if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > maxExposure {
		t.Errorf("exposure level %s, more than %.1f\n%s", m[1], maxExposure, out)
	}
}

func systemdAnalyze(t *testing.T) string {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("needs systemd-analyze, of Debian's package systemd: %v", err)
	}
	if err != nil {
		t.Skipf("needs systemd-analyze, of Debian's package systemd: %v", err)
	}
	return analyze
}

// TestUnitVerify: systemd accepts the units as `make install` writes them.
func TestUnitVerify(t *testing.T) {
	analyze := systemdAnalyze(t)
	dest := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dest, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dest, "bin", "tank-snapshotter")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	var units []string
	for _, name := range []string{"tank-snapshotter.service", "tank-snapshotter.socket"} {
		data, err := os.ReadFile(filepath.Join(unitDir, name))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dest, name)
		text := strings.ReplaceAll(string(data), "/usr/local/bin/tank-snapshotter", program)
		if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	cmd := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dest+":")
	// systemd-analyze ends with 0 even if it warns about unknown keys.
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
