package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// slowReader reads a log only after it was released.
type slowReader struct {
	release chan struct{}
	lockedBuffer
}

func (r *slowReader) Write(p []byte) (int, error) {
	<-r.release
	return r.lockedBuffer.Write(p)
}

// TestLogQueue: no log entry waits for the reader of the log. Entries keep their order, and those that were dropped are
// counted.
func TestLogQueue(t *testing.T) {
	r := &slowReader{release: make(chan struct{})}
	q := newLogQueue(r)
	const entries = 3 * logLines
	begun := time.Now()
	for n := range entries {
		if _, err := fmt.Fprintf(q, "entry %d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	q.flush(10 * time.Millisecond)
	if took := time.Since(begun); took > patienceOfTests {
		t.Errorf("it took %s", took)
	}
	close(r.release)
	q.flush(patienceOfTests)
	kept, dropped, last := 0, 0, -1
	for line := range strings.Lines(r.String()) {
		var n int
		if _, err := fmt.Sscanf(line, "entry %d\n", &n); err == nil {
			if n <= last { // a gap may be anywhere: the writer takes the first entry at some time
				t.Fatalf("%q after entry %d", line, last)
			}
			kept, last = kept+1, n
		} else if _, err := fmt.Sscanf(line, "log: %d entries", &n); err == nil {
			dropped += n
		} else {
			t.Errorf("%q", line)
		}
	}
	if kept < logLines || kept+dropped != entries {
		t.Errorf("%d entries, %d dropped", kept, dropped)
	}
}
