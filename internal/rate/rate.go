// Package rate decides whether a transfer is slow.
//
// It owns nothing. Its invariant: a transfer is judged only by a window of time that has ended, so
// a short pause or a transfer that has just begun is not slow. The surprising rule: a Meter has no
// clock of its own. It learns the time and the number of bytes only when its owner asks, and a
// window lasts until the first question after its length.
package rate

import "time"

// A transfer is slow if it brings less than Slow bytes per second over a window of Window.
const (
	Slow   = 256 << 10 // bytes per second
	Window = 5 * time.Second
)

// Meter judges one transfer. It is not safe for use by several goroutines at once.
type Meter struct {
	window  time.Duration
	longest time.Duration
	since   time.Time // when the current window began
	before  int64     // the transfer's bytes at that time
	slow    bool      // whether the last window was slow
}

// NewMeter makes a Meter of a transfer that begins now, with windows of at least the given length.
//
// In a long window, the average hides that a transfer has become slow. A window that lasts as long
// as longest, because nobody asked for a while, is therefore not judged, and the transfer counts as
// fast. If longest is zero, every window is judged.
func NewMeter(now time.Time, window, longest time.Duration) Meter {
	return Meter{window: window, longest: longest, since: now}
}

// IsSlow reports whether the transfer was slow in the last window. total is the number of bytes
// that it has brought since it began.
func (m *Meter) IsSlow(now time.Time, total int64) bool {
	took := now.Sub(m.since)
	if took < m.window {
		return m.slow
	}
	judged := m.longest == 0 || took < m.longest
	m.slow = judged && float64(total-m.before) < Slow*took.Seconds()
	m.since, m.before = now, total
	return m.slow
}
