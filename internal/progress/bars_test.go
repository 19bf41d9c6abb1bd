package progress

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestBars(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	b := &bars{w: &out, lines: map[digest.Digest]*bar{}, width: func() int { return 100 },
		now: func() time.Time { return now }}
	at := func(seconds int, e Event) {
		now = time.Unix(int64(seconds), 0)
		b.event(e)
	}
	const one, two = "sha256:111111111111aaaa", "sha256:222222222222bbbb"
	at(1, Event{Digest: one, Total: 1000})
	at(2, Event{Digest: two, Total: 500, Cached: true})
	b.text("pulling x")
	at(3, Event{Digest: one, Offset: 500, Total: 1000})
	screen := out.String()[strings.LastIndex(out.String(), "\x1b[J")+3:]
	lines := strings.Split(strings.TrimSpace(screen), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "250 B/s 2s left") || !strings.Contains(lines[1], "is here") {
		t.Errorf("screen:\n%s", screen)
	}
	if n := strings.Count(lines[0], "="); n*2 < strings.Count(lines[1], "=")-1 || n*2 > strings.Count(lines[1], "=")+1 {
		t.Errorf("half of a bar:\n%s", screen)
	}
	for _, l := range lines {
		if len(l) > 99 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
	if !strings.Contains(out.String(), "pulling x\n") {
		t.Error("text is lost")
	}
	for n, claimed := range []int64{2e17, math.MaxInt64, -1, 0} {
		for _, offset := range []int64{claimed, 1, -1, math.MaxInt64} {
			at(3, Event{Digest: digest.Digest(fmt.Sprint(n)), Offset: offset, Total: claimed})
			// draws
			at(4+n, Event{Digest: digest.Digest(fmt.Sprint(n)), Offset: offset / 2, Total: claimed, Done: true})
		}
	}
	at(5, Event{Digest: "x\x1b[2J", Total: 2e17})
	at(6, Event{Digest: "x\x1b[2J", Total: 2e17, Offset: 1e17})
	b.text("a\x1b[2J\nb")
	if strings.Contains(out.String(), "\x1b[2J") || !strings.Contains(out.String(), `a\x1b[2J\nb`+"\n") {
		t.Errorf("escapes of others:\n%q", out.String())
	}
	at(7, Event{Digest: one, Offset: 1000, Total: 1000, Done: true})
	if !strings.Contains(strings.Split(out.String()[strings.LastIndex(out.String(), "\x1b[J"):], "\n")[0], " done") {
		t.Errorf("the end:\n%q", out.String())
	}
}

func TestPlain(t *testing.T) {
	var b strings.Builder
	show := (&plain{w: &b, last: map[digest.Digest]time.Time{}}).event
	d := digest.Digest("sha256:" + strings.Repeat("ab", 32))
	show(Event{Digest: d, Offset: 0, Total: 1234})
	show(Event{Digest: d, Offset: 100, Total: 1234})
	show(Event{Digest: d, Offset: 1234, Total: 1234, Done: true})
	show(Event{Digest: d, Offset: 999, Total: 999, Done: true, Cached: true})
	if want := "sha256:abababababab fetched (1.2 kB)\nsha256:abababababab is here (999 B)\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
}
