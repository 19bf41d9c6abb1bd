package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// settings are those of a unit that this program applies.
type settings struct {
	capabilities                                    []uintptr
	noNewPrivileges                                 bool
	umask                                           int // -1: not set
	calls                                           map[string]bool
	refusal                                         unix.Errno // 0: the process is killed
	families                                        []uint32   // nil: all
	native, noNamespaces, noWriteExecute, noPersona bool
	noRealtime                                      bool
}

// others are the settings that do not restrict the process.
var others = []string{
	"Type", "ExecStart", "Restart", "RestartSec", "WatchdogSec", "TimeoutStartSec", "TimeoutStopSec", "KillMode",
	"RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "LimitNOFILE", "LimitMEMLOCK", "TasksMax",
	"OOMScoreAdjust", "MemoryHigh", "MemoryMax",
}

// readUnit reads the section [Service] of a unit.
func readUnit(name string) (*settings, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	s := &settings{umask: -1}
	service := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			service = line == "[Service]"
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || !service || strings.HasPrefix(line, "#") || slices.Contains(others, key) {
			continue
		}
		if err := s.set(key, strings.Fields(value)); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", name, line, err)
		}
	}
	return s, nil
}

func (s *settings) set(key string, words []string) (err error) {
	switches := map[string]*bool{
		"NoNewPrivileges": &s.noNewPrivileges, "RestrictNamespaces": &s.noNamespaces, "LockPersonality": &s.noPersona,
		"MemoryDenyWriteExecute": &s.noWriteExecute, "RestrictRealtime": &s.noRealtime,
	}
	if on, ok := switches[key]; ok {
		if len(words) != 1 || words[0] != "yes" {
			return fmt.Errorf("only yes is known")
		}
		*on = true
		return nil
	}
	switch key {
	case "UMask":
		mask, err := strconv.ParseUint(words[0], 8, 12)
		s.umask = int(mask)
		return err
	case "CapabilityBoundingSet":
		return s.setCapabilities(words)
	case "RestrictAddressFamilies":
		return s.setFamilies(words)
	case "SystemCallArchitectures":
		s.native = slices.Equal(words, []string{"native"})
		if !s.native {
			return fmt.Errorf("only native is known")
		}
		return nil
	case "SystemCallErrorNumber":
		if words[0] != "EPERM" {
			return fmt.Errorf("only EPERM is known")
		}
		s.refusal = unix.EPERM
		return nil
	case "SystemCallFilter":
		return s.setCalls(words)
	}
	return fmt.Errorf("this program does not apply it")
}

var capabilities = map[string]uintptr{
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_FOWNER": unix.CAP_FOWNER,
	"CAP_FSETID": unix.CAP_FSETID, "CAP_MKNOD": unix.CAP_MKNOD, "CAP_SETFCAP": unix.CAP_SETFCAP,
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
}

func (s *settings) setCapabilities(words []string) error {
	for _, w := range words {
		c, ok := capabilities[w]
		if !ok {
			return fmt.Errorf("%s is not one that the daemon needs", w)
		}
		s.capabilities = append(s.capabilities, c)
	}
	return nil
}

func (s *settings) setFamilies(words []string) error {
	known := map[string]uint32{
		"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK,
	}
	for _, w := range words {
		f, ok := known[w]
		if !ok {
			return fmt.Errorf("%s is not known", w)
		}
		s.families = append(s.families, f)
	}
	return nil
}

// setCalls applies one line. After the first line, everything that it does not name is refused. A later
// line adds, or with a tilde removes.
func (s *settings) setCalls(words []string) error {
	groups, err := readGroups()
	if err != nil {
		return err
	}
	away := len(words) > 0 && strings.HasPrefix(words[0], "~")
	if s.calls == nil {
		if away {
			return fmt.Errorf("a list of what is refused is not known")
		}
		s.calls = map[string]bool{}
		if err := groups.each("@default", func(call string) { s.calls[call] = true }); err != nil {
			return err
		}
	}
	for _, w := range words {
		err := groups.each(strings.TrimPrefix(w, "~"), func(call string) { s.calls[call] = !away })
		if err != nil {
			return err
		}
	}
	return nil
}
