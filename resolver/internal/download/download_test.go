package download

import (
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
)

// chunkBytes is the size of a range in these tests.
const chunkBytes = 64 << 10

// TestLinkState checks when a stream is divided.
func TestLinkState(t *testing.T) {
	const mb = 1 << 20
	p := newLinkState(4, 2*mb)
	try := func(rate float64, want bool, why string) {
		t.Helper()
		if p.shouldDivide(rate) != want {
			t.Errorf("%s: %v", why, !want)
		}
	}
	_, leave := p.begin()
	p.addLatency(2 * time.Second)
	p.addLatency(100 * time.Millisecond)
	p.addLatency(time.Second)
	try(30*mb, true, "3 MB on their way")
	try(50*mb, false, "5 MB on their way")
	for i := 1; i < 4; i++ {
		connection, also := p.begin()
		if connection != i {
			t.Errorf("connection %d", connection)
		}
		try(mb, i < 3, fmt.Sprintf("%d other blobs", i))
		defer also()
	}
	leave()
	try(mb, true, "a blob less")
	if p.startDivided() {
		t.Error("ranges without a trial")
	}
	p.recordTrial(true)
	if !p.startDivided() {
		t.Error("no ranges although they were faster")
	}
	p.recordTrial(false)
	try(mb, false, "were not faster")
	if p.startDivided() {
		t.Error("ranges although they were not faster")
	}
	p.notBefore = time.Now()
	try(mb, true, "were not faster, long ago")
	for range 20 {
		p.recordTrial(false)
	}
	if wait := time.Until(p.notBefore); wait > lastRetry || wait < lastRetry/2 {
		t.Errorf("waits %v", wait)
	}

	for _, tc := range []struct {
		rates []float64
		pays  bool
	}{{[]float64{10, 10, 10}, true}, {[]float64{2.5, 2.5, 2.5}, false}, {[]float64{2, 8, 1}, true},
		{[]float64{5, 6, 6}, false}} {
		v := newTrial(10*mb, 4)
		for i, rate := range tc.rates {
			pays, over := v.add(int64(rate*mb/10), 100*time.Millisecond)
			if over != (i == 2) || over && pays != tc.pays {
				t.Errorf("%v: %v, %v", tc.rates, pays, over)
			}
		}
	}
}

// TestRangesRefusedAtOnce checks that several ranges that are refused together count once, and that
// a range which is faster then does not count.
func TestRangesRefusedAtOnce(t *testing.T) {
	d := &transfer{link: newLinkState(4, chunkBytes)}
	var refused sync.WaitGroup
	for range 8 {
		refused.Go(func() { d.decide(t.Context(), false) })
	}
	refused.Wait()
	d.decide(t.Context(), true)
	if d.link.retryDelay != 2*firstRetry || d.link.startDivided() || !d.stopRanges.Load() {
		t.Errorf("waits %v after this, ranges: %v", d.link.retryDelay, d.link.startDivided())
	}
	d.stopRanges.Store(false) // a later trial
	d.decide(t.Context(), false)
	if d.link.retryDelay != 4*firstRetry {
		t.Errorf("waits %v after the second time", d.link.retryDelay)
	}
}

// TestNetworkWait checks that a stream waits for the network if it waits in Read, the processors
// are idle, and its rate does not change.
func TestNetworkWait(t *testing.T) {
	procs := time.Duration(runtime.GOMAXPROCS(0))
	for _, tc := range []struct {
		name   string
		waited time.Duration
		cpu    time.Duration // of all processors together
		before float64       // its ratio to the rate of this window
		want   bool
	}{
		{"waits", window, 0, 1, true},
		{"waits, a little faster than before", window, 0, 0.9, true},
		{"becomes faster", window, 0, 0.5, false},
		{"becomes slower", window, 0, 2, false},
		{"first window", window, 0, 0, false},
		{"works half of the time", window / 2, 0, 1, false},
		{"the processors are busy", window, window * procs * 3 / 4, 1, false},
		{"one of two processors is busy", window, window * procs / 4, 1, true},
	} {
		const n = 1 << 20
		s := newNetworkWait()
		s.since = s.since.Add(-window)
		s.cpu -= tc.cpu
		s.before = tc.before * n / window.Seconds()
		if _, starves := s.read(n, tc.waited); starves != tc.want {
			t.Errorf("%s: %v", tc.name, starves)
		}
	}
	s := newNetworkWait()
	if _, starves := s.read(1, window); starves || s.bytes != 1 {
		t.Error("before the window was over")
	}
}

// TestBuffers checks that the memory for ranges is bounded, and that one blob can have all its
// ranges.
func TestBuffers(t *testing.T) {
	b := newBuffers(4, chunkBytes)
	if cap(b.free) != maxBuffered/chunkBytes {
		t.Errorf("%d buffers", cap(b.free))
	}
	if b := newBuffers(4, maxBuffered); cap(b.free) != 4 { // the smallest number of buffers
		t.Errorf("%d buffers", cap(b.free))
	}
}

// TestRefusesRange checks which statuses mean that ranges are refused.
func TestRefusesRange(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{
		204: true, 304: true, 400: true, 401: false, 403: true, 404: false, 405: true, 408: false, 410: false,
		416: true,
		425: false, 429: false, 451: false, 500: false, 501: true, 502: false, 503: false, 505: true,
	} {
		if got := refusesRange(
			fmt.Errorf("x: %w",
				httperror.Status(&http.Response{StatusCode: status, Request: &http.Request{URL: &url.URL{}}}, "blobs",
					"x"))); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
}

// TestPanicInBlob checks that a panic in Stream is an error.
func TestPanicInBlob(t *testing.T) {
	err := Stream(t.Context(), nil, ocispec.Descriptor{Size: 1}, nil) // without a repository
	if !errdefs.IsInternal(err) {
		t.Error(err)
	}
}
