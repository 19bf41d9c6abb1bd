package tank_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/fsys/crashstate"
	"github.com/tank-snapshotter/tank/internal/ledger"
)

// statesOfHistory is how many states are made from each history. State number n is state n%statesOfHistory of history
// n/statesOfHistory.
const statesOfHistory = 1000

// crashHistory is a recorded history.
type crashHistory struct {
	recorder *crashstate.Recorder
	ops      []crashOp
	ends     []int // the position after each operation
	daemon   bool
}

// historyKinds returns the kinds of operations of history number n: all sequences of one, two and three operations, in
// this order, and then longer random ones.
func historyKinds(n int, rng *rand.Rand) (kinds []string) {
	for length, count := 1, len(crashKinds); length <= 3; length, count = length+1, count*len(crashKinds) {
		if n < count {
			for range length {
				kinds = append(kinds, crashKinds[n%len(crashKinds)])
				n /= len(crashKinds)
			}
			return kinds
		}
		n -= count
	}
	for range 4 + rng.IntN(5) {
		kinds = append(kinds, crashKinds[rng.IntN(len(crashKinds))])
	}
	return kinds
}

// recordHistory runs history number n in a root at dir.
func recordHistory(c *crashImages, dir string, n int) (*crashHistory, error) {
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	h := &crashHistory{recorder: crashstate.NewRecorder(dir)}
	f := facts{map[string]int{}, map[string]snapshotFact{}}
	kinds := historyKinds(n, rng)
	h.daemon = rng.IntN(2) == 0 || slices.ContainsFunc(kinds, func(kind string) bool {
		return kind == "unpack" || kind == "commit" || kind == "prepare"
	})
	w := &crashWorld{crashImages: c, dir: dir, daemon: h.daemon, fs: h.recorder, changed: h.recorder.Changed}
	defer w.close()
	for i, kind := range kinds {
		op := planOp(c, kind, i, f, rng)
		if op.ready != nil {
			op.ready(c)
		}
		if w.tk == nil {
			if err := w.open(); err != nil {
				return nil, err
			}
		}
		if err := op.do(w); err != nil {
			return nil, fmt.Errorf("%s: %w", op.name, err)
		}
		h.ops, h.ends = append(h.ops, op), append(h.ends, h.recorder.Position())
		f = op.after
		if !h.daemon { // a command for each
			if err := w.close(); err != nil {
				return nil, err
			}
		}
	}
	return h, w.close()
}

// at returns what was acknowledged before a position, and the operation that was under way.
func (h *crashHistory) at(position int) (f facts, op *crashOp) {
	for i, end := range h.ends {
		if position < end {
			return h.ops[i].before, &h.ops[i]
		}
	}
	return h.ops[len(h.ops)-1].after, nil
}

// checkState makes state number n of the history at dir and checks it.
func (h *crashHistory) checkState(t *testing.T, c *crashImages, dir string, n uint64) (at int, err error) {
	rng := rand.New(rand.NewPCG(n, 2))
	at = rng.IntN(h.recorder.Position() + 1)
	if err := h.recorder.State(rng, at).Write(dir); err != nil {
		return at, err
	}
	// The reserve has no record. Its allocation would take longer than everything else.
	must(t, keepReserve(dir))
	f, op := h.at(at)
	w := &crashWorld{crashImages: c, dir: dir, daemon: h.daemon}
	return at, w.checkCrashed(t, f, op)
}

// statesVariable chooses the states of TestCrashStates.
const statesVariable = "TANK_STATES"

// crashRange is a range of states of one history.
type crashRange struct{ history, first, count int }

// crashRanges returns the states to make: those of TANK_STATES=FIRST,COUNT, or a few of every ninth history.
func crashRanges(t *testing.T) (ranges []crashRange) {
	t.Helper()
	text := os.Getenv(statesVariable)
	if text == "" {
		for history := 0; history < 700; history += 9 {
			ranges = append(ranges, crashRange{history, history * statesOfHistory, 4})
		}
		return ranges
	}
	var first, count int
	if _, err := fmt.Sscanf(text, "%d,%d", &first, &count); err != nil || first < 0 || count < 1 {
		t.Fatalf("%s=%s: not FIRST,COUNT: %v", statesVariable, text, err)
	}
	for end := first + count; first < end; {
		n := min(end, (first/statesOfHistory+1)*statesOfHistory) - first
		ranges = append(ranges, crashRange{first / statesOfHistory, first, n})
		first += n
	}
	return ranges
}

// crashTally counts what TestCrashStates has done.
type crashTally struct {
	mu                          sync.Mutex // guards the fields below
	histories, states, failures int
}

// maxCrashFailures is how many states may fail before the test ends.
const maxCrashFailures = 20

func (c *crashTally) add(histories, states, failures int) (goOn bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.histories, c.states, c.failures = c.histories+histories, c.states+states, c.failures+failures
	return c.failures < maxCrashFailures
}

// TestCrashStates records histories of operations on fresh roots, makes random states that a power cut could have left,
// and checks each of them (docs/adr/0044-crash-states.md). TANK_STATES=FIRST,COUNT chooses the states.
func TestCrashStates(t *testing.T) {
	requireRoot(t)
	level := log.GetLevel()
	must(t, log.SetLevel("error")) // each repair is a warning
	defer func() { must(t, log.SetLevel(level.String())) }()
	scratch := shmDir(t)
	all := crashRanges(t)
	ranges := make(chan crashRange, len(all))
	for _, r := range all {
		ranges <- r
	}
	close(ranges)
	begun := time.Now()
	var tally crashTally
	t.Run("states", func(t *testing.T) {
		for worker := range 4 * runtime.GOMAXPROCS(0) { // opening and closing a root waits for background work
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				c := newCrashImages(t)
				for r := range ranges {
					if !r.check(t, c, scratch, &tally) {
						return
					}
				}
			})
		}
	})
	took := time.Since(begun)
	t.Logf("%d histories, %d states, %d failures, %.0f states/s", tally.histories, tally.states, tally.failures,
		float64(tally.states)/took.Seconds())
	if os.Getenv(statesVariable) != "" {
		ledger.Append(t, ledger.Run{
			Proof: "states", Range: fmt.Sprintf("%d-%d", all[0].first, all[len(all)-1].first+all[len(all)-1].count-1),
			Count: int64(tally.states), Failures: int64(tally.failures),
			Also: map[string]int64{"histories": int64(tally.histories)}, FS: "tmpfs", Seconds: int64(took.Seconds()),
		})
	}
}

// check records the history and checks the states of the range. It returns false after too many failures.
func (r crashRange) check(t *testing.T, c *crashImages, scratch string, tally *crashTally) (goOn bool) {
	dir := filepath.Join(scratch, fmt.Sprint("history-", r.history))
	h, err := recordHistory(c, dir, r.history)
	if err != nil {
		t.Errorf("history %d: %v", r.history, err)
		return tally.add(1, 0, 1)
	}
	must(t, os.RemoveAll(dir))
	goOn = tally.add(1, 0, 0)
	for n := r.first; n < r.first+r.count && goOn; n++ {
		dir := filepath.Join(scratch, fmt.Sprint("state-", n))
		failed := 0
		if at, err := h.checkState(t, c, dir, uint64(n)); err != nil {
			failed = 1
			t.Errorf("%s", h.describe(n, at, err))
		}
		must(t, errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".mnt")))
		goOn = tally.add(0, 1, failed)
	}
	return goOn
}

// describe describes a failed state.
func (h *crashHistory) describe(n, at int, err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "state %d: history %d (", n, n/statesOfHistory)
	for i, op := range h.ops {
		fmt.Fprintf(&b, "%s; until %d; ", op.name, h.ends[i])
	}
	steps := h.recorder.Steps()
	fmt.Fprintf(&b, "), cut at step %d:\n", at)
	for i := max(0, at-12); i < min(len(steps), at+3); i++ {
		fmt.Fprintf(&b, "\t%d %s\n", i, steps[i])
	}
	fmt.Fprintf(&b, "%v\nto repeat: TANK_STATES=%d,1 go test -count=1 -run '^TestCrashStates$' .", err, n)
	return b.String()
}

// shmDir returns a new directory in memory.
func shmDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tank-crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}
