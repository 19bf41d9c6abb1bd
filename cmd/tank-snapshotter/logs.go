package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
)

const (
	// logLines is how many log entries wait for a reader.
	logLines = 4096
	// flushTime is how long the end of a daemon waits for the reader of its log.
	flushTime = time.Second
)

// logQueue is the output of a daemon's log. It never makes a call wait: who reads the log may wait for a disk that
// stands still. It drops entries while too many wait, and then says how many.
type logQueue struct {
	to      io.Writer
	lines   chan logLine
	dropped atomic.Int64
}

// logLine is a log entry, or a mark whose channel is closed when everything before it is written.
type logLine struct {
	text    []byte
	written chan struct{}
}

func newLogQueue(to io.Writer) *logQueue {
	q := &logQueue{to: to, lines: make(chan logLine, logLines)}
	go q.write()
	return q
}

// queueLogs has log entries queued until end is called, which waits for the reader of the log for a moment.
func queueLogs() (end func()) {
	logger := log.L.Logger
	before := logger.Out
	q := newLogQueue(before)
	logger.SetOutput(q)
	return func() {
		logger.SetOutput(before)
		q.flush(flushTime)
	}
}

// Write queues a log entry. It always succeeds.
func (q *logQueue) Write(p []byte) (int, error) {
	select {
	case q.lines <- logLine{text: append([]byte(nil), p...)}:
	default:
		q.dropped.Add(1)
	}
	return len(p), nil
}

func (q *logQueue) write() {
	for l := range q.lines {
		if l.written != nil {
			close(l.written)
			continue
		}
		_, _ = q.to.Write(l.text)
		if n := q.dropped.Swap(0); n > 0 {
			_, _ = io.WriteString(q.to, fmt.Sprintf("log: %d entries were dropped, because nobody read the log\n", n))
		}
	}
}

// flush waits until what was logged is written, at most for within.
func (q *logQueue) flush(within time.Duration) {
	end := time.After(within)
	mark := logLine{written: make(chan struct{})}
	select {
	case q.lines <- mark:
	case <-end:
		return
	}
	select {
	case <-mark.written:
	case <-end:
	}
}
