package proof

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// campaign counts the cycles of one run of a proof, and records them in the ledger when it ends.
type campaign struct {
	t     *testing.T
	run   integration.Run
	first int
	last  int
	next  int // the number that runs next
	began time.Time
	shown time.Time
	limit time.Duration // 0: none
	ended chan os.Signal
}

// newCampaign selects the numbers that a proof runs: those of TANK_PROOF_RANGE=FIRST-LAST, at most to highest, or else
// the short range. TANK_PROOF_TIME is how long it may take. After that time, or a SIGINT or SIGTERM, what has run is
// recorded, and the next run begins with the number that follows.
func newCampaign(t *testing.T, run integration.Run, highest int, short [2]int) *campaign {
	t.Helper()
	c := &campaign{t: t, run: run, first: short[0], last: short[1], began: time.Now(), ended: make(chan os.Signal, 1)}
	if v := os.Getenv("TANK_PROOF_RANGE"); v != "" {
		if n, err := fmt.Sscanf(v, "%d-%d", &c.first, &c.last); n != 2 || err != nil || c.first < 1 ||
			c.first > c.last {
			t.Fatalf("TANK_PROOF_RANGE=%s: want FIRST-LAST", v)
		}
	}
	if v := os.Getenv("TANK_PROOF_TIME"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("TANK_PROOF_TIME: %v", err)
		}
		c.limit = d
	}
	c.next, c.last = c.first, min(c.last, highest)
	signal.Notify(c.ended, syscall.SIGINT, syscall.SIGTERM)
	t.Cleanup(c.record)
	return c
}

// more reports whether another number is to run.
func (c *campaign) more() bool {
	select {
	case s := <-c.ended:
		c.t.Logf("ended by %v", s)
		return false
	default:
	}
	if c.next == c.first { // what was before is no work of the proof
		c.began, c.shown = time.Now(), time.Now()
	}
	return c.next <= c.last && (c.limit == 0 || time.Since(c.began) < c.limit)
}

// done counts a number that ran, in so many cycles.
func (c *campaign) done(cycles, failures int64) {
	c.next++
	c.run.Count += cycles
	c.run.Failures += failures
	if time.Since(c.shown) > time.Minute {
		c.shown = time.Now()
		c.t.Logf("up to %d: %d cycles, %d failed, %v", c.next-1, c.run.Count, c.run.Failures,
			time.Since(c.began).Round(time.Second))
	}
}

func (c *campaign) record() {
	signal.Stop(c.ended)
	if c.next == c.first {
		if !c.t.Failed() {
			c.t.Error("nothing ran in that time")
		}
		return
	}
	c.run.Range = fmt.Sprintf("%d-%d", c.first, c.next-1)
	integration.Record(c.t, c.run, c.began)
}

// fileSystems are those that power cuts are tried on: TANK_PROOF_FS, or both.
func fileSystems() []string {
	if fs := os.Getenv("TANK_PROOF_FS"); fs != "" {
		return []string{fs}
	}
	return []string{"ext4", "xfs"}
}
