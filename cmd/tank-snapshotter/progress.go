package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/plugin"
)

// show is how a pull's progress is shown: downloads, and lines of text between them.
type show struct {
	event func(plugin.Progress) // nil: downloads are not shown
	text  func(line string)     // nil: lines go to the log
}

// progressTo decides how progress is shown on f.
func progressTo(f *os.File, kind string) (show, error) {
	switch kind {
	case "none":
		return show{}, nil
	case "auto":
		if term.IsTerminal(int(f.Fd())) {
			b := newBars(f)
			return show{b.event, b.text}, nil
		}
	case "plain":
	default:
		return show{}, fmt.Errorf("--progress %q is none of auto, plain, none", kind)
	}
	p := &plainProgress{w: f, last: map[string]time.Time{}}
	return show{event: p.event}, nil
}

// plainEvery is how often a download that goes on is mentioned.
const plainEvery = 5 * time.Second

// plainProgress writes a line when a download ends, and every few seconds until then.
type plainProgress struct {
	mu   sync.Mutex // guards both, since several downloads tell at once
	w    io.Writer
	last map[string]time.Time
}

func (p *plainProgress) event(e plugin.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.last[e.Digest]
	switch {
	case e.Cached:
		printable.Fprintf(p.w, "%s is here (%s)\n", short(e.Digest), bytesOf(e.Total))
	case e.Done:
		printable.Fprintf(p.w, "%s fetched (%s)\n", short(e.Digest), bytesOf(e.Total))
	case !known:
		p.last[e.Digest] = time.Now()
	case time.Since(last) >= plainEvery:
		p.last[e.Digest] = time.Now()
		printable.Fprintf(p.w, "%s %s of %s\n", short(e.Digest), bytesOf(e.Offset), bytesOf(e.Total))
	}
}

// short is a digest as people tell it apart.
func short(digest string) string { return printable.Text(digest[:min(len(digest), len("sha256:")+12)]) }

// bytesOf writes a number of bytes in decimal units, as registries and disks are sold.
func bytesOf(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
