package integration

import (
	"cmp"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestLinear: whatever 16 clients call at once, the snapshot and content services answer as if one call came after the
// other, and as containerd's own services would. Each seed makes one history for each service; TANK_LINEAR=FIRST-LAST
// selects the seeds, and TANK_PROOF_TIME bounds the time. The calls of a seed are always the same; how they overlap is
// not.
func TestLinear(t *testing.T) {
	var first, last uint64
	if _, err := fmt.Sscanf(cmp.Or(os.Getenv("TANK_LINEAR"), "1-8"), "%d-%d", &first, &last); err != nil ||
		last < first {
		t.Fatalf("TANK_LINEAR is not FIRST-LAST: %v", err)
	}
	limit, err := time.ParseDuration(cmp.Or(os.Getenv("TANK_PROOF_TIME"), "24h"))
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(limit)
	for _, s := range []struct {
		name    string
		setup   Setup
		history func(t *testing.T, k *TankRoot) func(seed uint64) bool
	}{
		{"snapshots-overlay", Setup{}, snapshotHistories},
		{"snapshots-directory", Setup{Directory: true}, snapshotHistories},
		{"content", Setup{}, contentHistories},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k := e.NewTank()
			if s.setup.Directory {
				k.Config = directoryMode
			}
			k.Serve()
			check := s.history(t, k)
			for seed := first; seed <= last && time.Now().Before(end); {
				began := time.Now()
				run := Run{Proof: "linearizability", Part: s.name}
				from := seed
				for ; seed <= last && run.Count < 100 && time.Now().Before(end); seed++ {
					run.Count++
					if !check(seed) {
						run.Failures++
					}
				}
				run.Range = fmt.Sprintf("%d-%d", from, seed-1)
				Record(t, run, began)
			}
		})
	}
}

// TestLinearCheck: the search accepts histories that have an order, finds where others stop having one, and agrees with
// porcupine's search.
func TestLinearCheck(t *testing.T) {
	const forever = 1000
	op := func(call, returned int64, c snapshotCall, class, text string) porcupine.Operation {
		return porcupine.Operation{Input: c, Output: &snapshotResult{class, text}, Call: call, Return: returned}
	}
	prepare := snapshotCall{Op: "prepare", Key: "a", Label: "1"}
	stat, remove, walk := snapshotCall{
		Op:  "stat",
		Key: "a",
	}, snapshotCall{
		Op:  "remove",
		Key: "a",
	}, snapshotCall{
		Op: "walk",
	}
	info := modelSnapshot{name: "a", kind: "Active", label: "1"}.info()
	for name, row := range map[string]struct {
		history []porcupine.Operation
		end     int64
	}{
		"one after the other": {[]porcupine.Operation{
			op(0, 1, stat, "not found", ""), op(2, 3, prepare, "", "m"), op(4, 5, stat, "", info),
			op(6, 7, remove, "", ""), op(8, 9, walk, "", ""),
		}, -1},
		"at once": {[]porcupine.Operation{
			op(0, 9, prepare, "", "m"), op(1, 8, remove, "", ""), op(2, 7, stat, "", info),
			op(3, 6, prepare, "exists", ""),
			op(4, 5, stat, "not found", ""),
		}, -1},
		"exists before anybody finds it": {[]porcupine.Operation{
			op(0, forever, prepare, "", "m"), op(1, 2, prepare, "exists", ""), op(3, 4, stat, "not found", ""),
		}, 4},
		"lost": {[]porcupine.Operation{
			op(0, 1, prepare, "", "m"), op(2, 3, walk, "", info+"\n"), op(4, 5, walk, "", ""), op(6, 7, stat, "", info),
		}, 5},
		"made twice": {[]porcupine.Operation{op(0, 9, prepare, "", "m"), op(1, 8, prepare, "", "n")}, 9},
	} {
		end, err := snapshotModel.order(row.history)
		if end != row.end || err != nil {
			t.Errorf("%s: no order at %d, want %d: %v", name, end, row.end, err)
		}
		if porcupine.CheckOperations(snapshotModel.porcupine(), row.history) != (row.end < 0) {
			t.Errorf("%s: porcupine disagrees", name)
		}
	}
}
