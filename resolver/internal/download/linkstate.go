package download

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Rules of when a stream is divided into ranges.
const (
	// window is how long a stream is watched at a time.
	window = 300 * time.Millisecond
	// steady is how much the rates of two windows may differ. A connection that is still becoming faster is left to it.
	steady = 1.25
	// asFast is the part of the rate of one stream alone that each of several has to reach, if they are not to share what the one had.
	asFast = 0.7
	// firstRetry is how long nothing is divided after it was found to bring nothing; doubled each time, up to lastRetry.
	firstRetry = 10 * time.Second
	lastRetry  = 5 * time.Minute
)

// pace is what one Fetch finds out about the way to the registry: whether more connections bring more bytes.
//
// A blob comes as one stream until that waits for the network most of the time. Then it is divided, and if each range comes about as fast as the
// stream alone, connections are the limit, and ranges stay. If they are slower, the connections share a limit; more of them are only
// more requests, so the stream comes back.
type linkState struct {
	ranges int
	chunk  int64

	mu         sync.Mutex
	active     int           // large blobs on their way
	begun      int           // large blobs so far
	latency    time.Duration // the shortest from a request to its answer; 0 is unknown
	divided    bool          // found out
	notBefore  time.Time     // nothing is divided before
	retryDelay time.Duration
}

func newLinkState(ranges int, chunk int64) *linkState {
	return &linkState{ranges: ranges, chunk: chunk, retryDelay: firstRetry}
}

// enter counts a large blob, until leave, and gives it a lane.
func (p *linkState) begin() (lane int, leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lane = p.begun % p.ranges
	p.begun++
	p.active++
	return lane, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.active--
	}
}

// answered takes note of how long a request waited for its answer.
func (p *linkState) addLatency(latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.latency == 0 || latency < p.latency {
		p.latency = latency
	}
}

// least is the shortest wait for an answer so far.
func (p *linkState) minLatency() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latency
}

// divide says whether a stream that comes at rate, in bytes per second, and waits for the network, is worth a try. With as many blobs on their way
// as a blob may have ranges, there are that many connections; and where a range would wait longer for its answer than it takes to come,
// ranges are no faster.
func (p *linkState) shouldDivide(rate float64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active < p.ranges && !time.Now().Before(p.notBefore) && rate*p.latency.Seconds() <= 2*float64(p.chunk)
}

// wide says whether a blob shall begin with ranges, because another one's paid.
func (p *linkState) startDivided() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.divided && p.active < p.ranges
}

// judge takes the outcome of a try.
func (p *linkState) recordTrial(pays bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.divided = pays; pays {
		p.retryDelay = firstRetry
		return
	}
	p.notBefore = time.Now().Add(p.retryDelay)
	p.retryDelay = min(2*p.retryDelay, lastRetry)
}

// trial compares ranges with the stream that they come from. The fastest of some counts: what makes one slow may be chance, and to give up
// ranges that would pay is the greater loss.
type trial struct {
	streamRate float64 // bytes per second of the stream

	mu   sync.Mutex
	need int     // ranges until there is a verdict
	best float64 // bytes per second
}

func newTrial(alone float64, ranges int) *trial {
	return &trial{streamRate: alone, need: max(1, ranges-1)}
}

// add counts one range, and says in the end whether they pay. took is without the least wait for an answer: what is more than that, others cause.
func (t *trial) add(bytes int64, took time.Duration) (pays, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.best = max(t.best, float64(bytes)/max(took, time.Microsecond).Seconds())
	t.need--
	return t.best >= asFast*t.streamRate, t.need == 0
}

// starvation watches a stream: whether it is the network that it waits for, and how fast it is meanwhile.
type networkWait struct {
	since  time.Time
	cpu    time.Duration // of the process at since
	waited time.Duration
	bytes  int64
	before float64 // rate of the window before this one, if the stream starved in it
}

func newNetworkWait() *networkWait { return &networkWait{since: time.Now(), cpu: processTime()} }

// read takes note of a Read that brought n bytes. It answers the rate in bytes per second once the stream starves steadily: three quarters of the
// time went by in Read, and of the processors, which may be why the other side is slow if it is this machine, less than half was used by us.
func (s *networkWait) read(n int, waited time.Duration) (rate float64, starves bool) {
	s.bytes += int64(n)
	s.waited += waited
	took := time.Since(s.since)
	if took < window {
		return 0, false
	}
	rate = float64(s.bytes) / took.Seconds()
	last := *s
	*s = *newNetworkWait()
	if last.waited < took*3/4 || s.cpu-last.cpu > took*time.Duration(runtime.GOMAXPROCS(0))/2 {
		return 0, false
	}
	s.before = rate
	return rate, rate <= steady*last.before && last.before <= steady*rate
}

// processTime is how long processors have worked for this process.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
