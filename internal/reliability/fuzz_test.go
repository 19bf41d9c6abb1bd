package main

import (
	"strings"
	"testing"
)

func TestCountExecutions(t *testing.T) {
	const output = `fuzz: elapsed: 0s, gathering baseline coverage: 0/29 completed
fuzz: elapsed: 3s, execs: 120 (40/sec), new interesting: 0 (total: 29)
fuzz: elapsed: 6s, execs: 31220 (10366/sec), new interesting: 1 (total: 30)
PASS
`
	for text, want := range map[string]int64{"": 0, "PASS\n": 0, output: 31220} {
		if n, err := countExecutions(strings.NewReader(text)); n != want || err != nil {
			t.Errorf("%d, %v, want %d", n, err, want)
		}
	}
}

// TestTargets: make fuzz finds the targets of every package.
func TestTargets(t *testing.T) {
	all, err := targets("../..")
	if err != nil || len(all) < 18 {
		t.Errorf("%d targets: %v", len(all), err)
	}
}
