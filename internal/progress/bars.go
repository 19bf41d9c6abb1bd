package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// redrawEvery is the shortest interval between two drawings.
const redrawEvery = 100 * time.Millisecond

// maxLeft is the longest remaining time that is shown.
const maxLeft = 100 * time.Hour

// bars shows a line for each download on a terminal and redraws them in place.
type bars struct {
	mu    sync.Mutex // guards the fields below
	w     io.Writer
	width func() int
	now   func() time.Time
	order []digest.Digest
	lines map[digest.Digest]*bar
	drawn int       // lines on the screen
	last  time.Time // time of the latest drawing
}

// bar is the state of one download.
type bar struct {
	offset, total int64
	began         time.Time
	first         int64 // the offset at the beginning: resumed bytes do not count for the speed
	done, cached  bool
}

func newBars(f *os.File) *bars {
	return &bars{w: f, now: time.Now, lines: map[digest.Digest]*bar{}, width: func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil || width <= 0 {
			return 80
		}
		return width
	}}
}

// event updates the state of a download.
func (b *bars) event(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lines[e.Digest]
	if l == nil {
		l = &bar{began: b.now(), first: e.Offset}
		b.lines[e.Digest] = l
		b.order = append(b.order, e.Digest)
	}
	l.offset, l.total = max(l.offset, e.Offset), e.Total
	l.done, l.cached = l.done || e.Done || e.Cached, l.cached || e.Cached
	if l.done {
		l.offset = l.total
	}
	if e.Done || b.now().Sub(b.last) >= redrawEvery {
		b.draw()
	}
}

// text writes a line above the bars.
func (b *bars) text(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
	printable.Fprintf(b.w, "%s\n", line)
	b.draw()
}

func (b *bars) clear() {
	if b.drawn > 0 {
		printable.Fprintf(b.w, "\x1b[%dA\x1b[J", b.drawn)
		b.drawn = 0
	}
}

func (b *bars) draw() {
	b.last = b.now()
	b.clear()
	width := b.width()
	for _, d := range b.order {
		printable.Fprintf(b.w, "%s\n", b.lines[d].line(d, width, b.last))
		b.drawn++
	}
}

// line returns the line of a download in a number of columns.
func (l *bar) line(d digest.Digest, width int, now time.Time) string {
	name := strings.TrimPrefix(printable.Digest(d.String()), "sha256:")
	var state string
	switch {
	case l.cached:
		state = "is here"
	case l.done:
		state = "done"
	default:
		state = l.speed(now)
	}
	size := fmt.Sprintf("%8s of %8s", printable.Bytes(l.offset), printable.Bytes(l.total))
	room := width - len(name) - len(size) - len("  [] ") - len("000.0 MB/s 00m00s left") - 1
	if room < 4 {
		return fmt.Sprintf("%s %s %s", name, size, state)
	}
	filled := room
	if l.total > 0 { // in floating point, because a manifest may claim any total, and an integer product may overflow
		filled = max(0, min(room, int(float64(room)*(float64(l.offset)/float64(l.total)))))
	}
	return fmt.Sprintf("%s [%s%s] %s %s", name, strings.Repeat("=", filled), strings.Repeat(" ", room-filled),
		size, state)
}

// speed returns the speed of a download and the remaining time.
func (l *bar) speed(now time.Time) string {
	seconds := now.Sub(l.began).Seconds()
	if seconds < 0.5 || l.offset <= l.first {
		return ""
	}
	perSecond := float64(l.offset-l.first) / seconds
	seconds = (float64(l.total) - float64(l.offset)) / perSecond
	if seconds >= maxLeft.Seconds() {
		return fmt.Sprintf("%s/s", printable.Bytes(int64(perSecond)))
	}
	left := time.Duration(max(0, seconds) * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("%s/s %s left", printable.Bytes(int64(perSecond)), left)
}
