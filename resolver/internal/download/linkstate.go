package download

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Limits of the decision whether a stream is divided into ranges.
const (
	// window is how long a stream is measured at a time.
	window = 300 * time.Millisecond
	// steady bounds the ratio of the rates of two windows. A connection whose rate still grows is
	// not divided.
	steady = 1.25
	// minShare is the part of the rate of one stream that each range has to reach. If the ranges
	// are slower, they share a limit.
	minShare = 0.7
	// firstRetry is the wait before the next trial after ranges were not faster. It doubles for
	// each further trial, up to lastRetry.
	firstRetry = 10 * time.Second
	lastRetry  = 5 * time.Minute
)

// linkState is what a Downloader has learned about the network between it and the registry: whether
// more connections bring more bytes.
//
// A blob begins as one stream. When the stream waits for the network most of the time, it is
// divided. If each range then comes about as fast as the stream did, the network limits each
// connection, and the blob and later ones use ranges. If the ranges are slower, the connections
// share a limit, so that ranges only cost more requests, and the blob continues as one stream.
type linkState struct {
	ranges int
	chunk  int64

	mu         sync.Mutex    // guards the fields below
	active     int           // large blobs that are downloaded now
	begun      int           // large blobs so far
	latency    time.Duration // shortest time from a request to its answer; 0: unknown
	divided    bool          // ranges have been faster than one stream
	notBefore  time.Time     // no stream is divided before
	retryDelay time.Duration
}

func newLinkState(ranges int, chunk int64) *linkState {
	return &linkState{ranges: ranges, chunk: chunk, retryDelay: firstRetry}
}

// begin counts a large blob until end is called, and returns the number of the connection that the
// blob uses.
func (l *linkState) begin() (connection int, end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	connection = l.begun % l.ranges
	l.begun++
	l.active++
	return connection, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.active--
	}
}

// addLatency records the time from a request to its answer.
func (l *linkState) addLatency(latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latency == 0 || latency < l.latency {
		l.latency = latency
	}
}

// minLatency returns the shortest time from a request to its answer.
func (l *linkState) minLatency() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latency
}

// shouldDivide reports whether to try ranges for a stream that waits for the network and comes at
// rate bytes per second. It does not if as many large blobs are downloaded as a blob may have
// ranges, because they already use as many connections, or if a range would wait longer for its
// answer than its bytes take to come.
func (l *linkState) shouldDivide(rate float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.active < l.ranges && !time.Now().Before(l.notBefore) && rate*l.latency.Seconds() <= 2*float64(l.chunk)
}

// startDivided reports whether a blob begins with ranges, because they were faster for another one.
func (l *linkState) startDivided() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.divided && l.active < l.ranges
}

// recordTrial records whether ranges were faster.
func (l *linkState) recordTrial(faster bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.divided = faster; faster {
		l.retryDelay = firstRetry
		return
	}
	l.notBefore = time.Now().Add(l.retryDelay)
	l.retryDelay = min(2*l.retryDelay, lastRetry)
}

// trial compares ranges with the stream that they replace. It uses the fastest of several ranges: a
// range may be slow by chance, and to give up ranges that are faster costs more than to keep ranges
// that are not.
type trial struct {
	streamRate float64 // bytes per second

	mu   sync.Mutex // guards the fields below
	need int        // ranges until the trial ends
	best float64    // bytes per second
}

func newTrial(streamRate float64, ranges int) *trial {
	return &trial{streamRate: streamRate, need: max(1, ranges-1)}
}

// add counts one range, and reports whether the trial is over and ranges are faster. took excludes
// the shortest latency: a longer wait is caused by other requests.
func (t *trial) add(bytes int64, took time.Duration) (faster, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.best = max(t.best, float64(bytes)/max(took, time.Microsecond).Seconds())
	t.need--
	return t.best >= minShare*t.streamRate, t.need == 0
}

// networkWait measures whether a stream waits for the network, and how fast it is.
type networkWait struct {
	since  time.Time
	cpu    time.Duration // processor time of the process until since
	waited time.Duration
	bytes  int64
	before float64 // bytes per second in the window before, if the stream waited for the network in it
}

func newNetworkWait() *networkWait { return &networkWait{since: time.Now(), cpu: processTime()} }

// read records a Read that returned n bytes after it waited. When the stream has waited for the
// network in two windows at about the same rate, read reports that and returns the rate in bytes
// per second. A stream waits for the network in a window if three quarters of the time went by in
// Read and the process used less than half of the processors. (If the registry is on this machine,
// busy processors may be what makes it slow.)
func (w *networkWait) read(n int, waited time.Duration) (rate float64, slow bool) {
	w.bytes += int64(n)
	w.waited += waited
	took := time.Since(w.since)
	if took < window {
		return 0, false
	}
	rate = float64(w.bytes) / took.Seconds()
	last := *w
	*w = *newNetworkWait()
	if last.waited < took*3/4 || w.cpu-last.cpu > took*time.Duration(runtime.GOMAXPROCS(0))/2 {
		return 0, false
	}
	w.before = rate
	return rate, rate <= steady*last.before && last.before <= steady*rate
}

// processTime returns the processor time that this process has used.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
