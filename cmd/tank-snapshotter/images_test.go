package main

import (
	"testing"

	"github.com/tank-snapshotter/tank"
)

// TestUnfinishedLine: gc reports how much an unfinished pull keeps, and the command that frees it.
func TestUnfinishedLine(t *testing.T) {
	for _, tc := range []struct {
		holder  tank.Unfinished
		printed string
	}{
		{tank.Unfinished{Holder: "pull/r.example/x:1", Bytes: 2_000_000},
			"pull/r.example/x:1, an unfinished pull, keeps 2.0 MB for a day: `release pull/r.example/x:1` frees it"},
		{tank.Unfinished{Holder: "pull/r.example/x:1", Bytes: 2_000_000, Running: true},
			"pull/r.example/x:1, a running pull, has downloaded 2.0 MB so far"},
		{tank.Unfinished{Holder: "containerd", Bytes: 1500},
			"containerd keeps 1.5 kB of unfinished downloads, which its containerd resumes or deletes"},
	} {
		if got := unfinishedLine(tc.holder); got != tc.printed {
			t.Errorf("%+v: %q, want %q", tc.holder, got, tc.printed)
		}
	}
}
