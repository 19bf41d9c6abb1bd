// Package progress shows how far downloads are, to a person at a terminal or in lines of a log.
//
// It owns nothing on disk.
//
// Its invariant: the functions of a Display may be called by several downloads at once. They escape
// digests and lines before they write them.
//
// The surprising rule: a total is a registry's claim, so it may be zero, negative or huge. Neither bars nor remaining
// times may break on it.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// Event is the state of one download.
type Event struct {
	Digest digest.Digest
	Offset int64 // bytes that are in the store
	Total  int64 // bytes of the blob, as the registry claims
	Done   bool  // the download ended
	Cached bool  // the blob was already in the store, so there was no download
}

// Display shows downloads. The zero value shows nothing.
type Display struct {
	// Event shows the state of a download. nil: downloads are not shown.
	Event func(Event)
	// Text shows a line without disturbing the downloads. nil: the caller writes such lines to its log.
	Text func(line string)
}

// New returns a display of a kind: "auto" draws bars if f is a terminal and otherwise writes lines, "plain"
// writes lines, and "none" shows nothing.
func New(f *os.File, kind string) (Display, error) {
	switch kind {
	case "none":
		return Display{}, nil
	case "auto":
		if term.IsTerminal(int(f.Fd())) {
			b := newBars(f)
			return Display{b.event, b.text}, nil
		}
	case "plain":
	default:
		return Display{}, fmt.Errorf("--progress %q is none of auto, plain, none", kind)
	}
	p := &plain{w: f, last: map[digest.Digest]time.Time{}}
	return Display{Event: p.event}, nil
}

// plainInterval is the interval between two lines about one download.
const plainInterval = 5 * time.Second

// plain writes a line every few seconds while a blob is downloaded, and a line at its end.
type plain struct {
	mu   sync.Mutex // guards the fields below
	w    io.Writer
	last map[digest.Digest]time.Time // when the latest line about a blob was written, or its download began
}

func (p *plain) event(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.last[e.Digest]
	switch {
	case e.Cached:
		printable.Fprintf(p.w, "%s is here (%s)\n", printable.Digest(e.Digest.String()), printable.Bytes(e.Total))
	case e.Done:
		printable.Fprintf(p.w, "%s fetched (%s)\n", printable.Digest(e.Digest.String()), printable.Bytes(e.Total))
	case !known:
		p.last[e.Digest] = time.Now()
	case time.Since(last) >= plainInterval:
		p.last[e.Digest] = time.Now()
		printable.Fprintf(p.w, "%s %s of %s\n", printable.Digest(e.Digest.String()), printable.Bytes(e.Offset),
			printable.Bytes(e.Total))
	}
}
