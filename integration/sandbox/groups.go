package main

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
)

// groups are systemd's sets of system calls by their names, which begin with @. A set may name others.
type groups map[string][]string

// readGroups runs systemd-analyze once. systemd itself need not run.
var readGroups = sync.OnceValues(func() (groups, error) {
	out, err := exec.Command("systemd-analyze", "syscall-filter", "--no-pager").Output()
	if err != nil {
		return nil, fmt.Errorf("systemd-analyze syscall-filter: %w", err)
	}
	g, name := groups{}, ""
	for line := range strings.Lines(string(out)) {
		word := strings.TrimSpace(line)
		switch {
		case word == "" || strings.HasPrefix(word, "#"):
		case strings.HasPrefix(line, "@"):
			name = word
			g[name] = []string{}
		case name != "" && !strings.ContainsAny(word, " ."):
			g[name] = append(g[name], word)
		}
	}
	return g, nil
})

// each calls fn for the system call name or, if name is a set, for each call of the set.
func (g groups) each(name string, fn func(call string)) error {
	if !strings.HasPrefix(name, "@") {
		fn(name)
		return nil
	}
	members, ok := g[name]
	if !ok {
		return fmt.Errorf("systemd-analyze has no set %s", name)
	}
	for _, m := range members {
		if err := g.each(m, fn); err != nil {
			return err
		}
	}
	return nil
}
