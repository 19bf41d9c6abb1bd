package fence

import "time"

// timer tells when work has made no progress for the limit.
type timer struct {
	limit    time.Duration
	progress func() uint64 // nil: there is none to be seen
	ticks    *time.Timer
	last     uint64    // what progress returned
	since    time.Time // since when it returns that
}

func newTimer(limit time.Duration, progress func() uint64) *timer {
	t := &timer{limit: limit, since: time.Now()}
	t.ticks = time.NewTimer(limit)
	t.follow(progress)
	return t
}

// follow makes progress what expired looks at.
func (t *timer) follow(progress func() uint64) {
	if t.progress = progress; progress != nil {
		t.last = progress()
		t.ticks.Reset(t.limit / look)
	}
}

// tick is received from whenever expired has to be asked.
func (t *timer) tick() <-chan time.Time { return t.ticks.C }

// expired reports whether the time is over. It is called after each tick.
func (t *timer) expired() bool {
	now := time.Now()
	if t.progress != nil {
		if p := t.progress(); p != t.last {
			t.last, t.since = p, now
		}
		t.ticks.Reset(t.limit / look)
	} else {
		t.ticks.Reset(max(0, t.limit-now.Sub(t.since)))
	}
	return now.Sub(t.since) >= t.limit
}

func (t *timer) stop() { t.ticks.Stop() }
