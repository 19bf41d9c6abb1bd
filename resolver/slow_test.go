package resolver

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestFN1Cuts checks that a cut connection costs no byte twice, wherever it is cut.
func TestFN1Cuts(t *testing.T) {
	for _, percent := range []int{1, 10, 37, 50, 90, 99} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprint(percent, " ", whole), func(t *testing.T) {
				reg, data, r := large(t)
				at := bigSize * percent / 100
				n := at % testChunk
				if whole {
					r.opts.Ranges, n = 1, at
				}
				var sent atomic.Int64
				var once atomic.Bool
				reg.Fault = meter(layerPath(data), &sent, func(w http.ResponseWriter, req *http.Request) bool {
					if start := fmt.Sprintf("bytes=%d-",
						at-n); (req.Header.Get("Range") == "" || strings.HasPrefix(req.Header.Get("Range"), start)) &&
						!once.Swap(true) {
						return registrytest.Cut(data, n)(w, req)
					}
					return registrytest.Cut(data, bigSize)(w, req)
				})
				store := newStore(t)
				if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
					t.Fatal(err)
				}
				holds(t, store, data)
				if sent.Load() != bigSize || !once.Load() {
					t.Errorf("%d bytes were sent of %d, cut: %v", sent.Load(), bigSize, once.Load())
				}
			})
		}
	}
}

// TestFN1Dies checks that a fetch resumes the ingest of one whose registry stopped for good.
func TestFN1Dies(t *testing.T) {
	for _, percent := range []int{1, 50, 99} {
		reg, data, r := large(t)
		var dead atomic.Bool
		var sent, budget atomic.Int64
		budget.Store(int64(bigSize * percent / 100))
		reg.Fault = registrytest.On(layerPath(data), func(w http.ResponseWriter, req *http.Request) bool {
			if dead.Load() {
				panic(http.ErrAbortHandler)
			}
			n := max(0, int(budget.Add(-testChunk))+testChunk)
			if n < testChunk {
				dead.Store(true)
			}
			return meter("", &sent, registrytest.Cut(data, min(n, testChunk)))(w, req)
		})
		store := newStore(t)
		if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
		dead.Store(false)
		budget.Store(10 * bigSize)
		if _, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil); err != nil {
			t.Fatal(err)
		}
		holds(t, store, data)
		if extra := sent.Load() - bigSize; extra > 3*testChunk {
			t.Errorf("%d %%: %d bytes were sent twice", percent, extra)
		}
	}
}

// TestD20Slow checks that a stalled answer is canceled and resumed.
func TestD20Slow(t *testing.T) {
	for _, tc := range []struct {
		testName string
		fault    func(data []byte) registrytest.Fault
		ok       bool
	}{
		{"stall in the body",
			func(d []byte) registrytest.Fault { return registrytest.Times(3, registrytest.Stall(d, 1000)) }, true},
		{"stall before the header", func([]byte) registrytest.Fault {
			return registrytest.Times(2,
				func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
		}, true},
		{"a byte now and then", func(d []byte) registrytest.Fault { return registrytest.Drip(d, 30*time.Millisecond) },
			false},
		{"a byte now and then, once", func(d []byte) registrytest.Fault {
			return registrytest.Times(2, registrytest.Drip(d, 30*time.Millisecond))
		}, true},
		{"header drip", func([]byte) registrytest.Fault {
			return registrytest.Times(2, func(w http.ResponseWriter, _ *http.Request) bool {
				conn, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					return false
				}
				defer conn.Close()
				for _, c := range "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 1000) {
					_, _ = rw.WriteRune(c)
					if rw.Flush() != nil {
						break
					}
					time.Sleep(20 * time.Millisecond)
				}
				return true
			})
		}, true},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			t.Parallel()
			reg, data, r := large(t)
			reg.Fault = registrytest.On(layerPath(data), tc.fault(data))
			start := time.Now()
			store := newStore(t)
			_, err := pull(t.Context(), r, store, reg.Host+"/x:1", nil)
			if (err == nil) != tc.ok || err != nil && !errdefs.IsUnavailable(err) {
				t.Fatal(err)
			}
			if err == nil {
				holds(t, store, data)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestSlowStore checks that the time of a slow store does not count as a stall of the registry.
func TestSlowStore(t *testing.T) {
	reg := registrytest.New(t)
	image(reg)
	r := newResolver(t, func(o *Options) { o.StallTimeout = 100 * time.Millisecond })
	_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1",
		&FetchOptions{Progress: func(Event) { time.Sleep(20 * time.Millisecond) }})
	if err != nil {
		t.Fatal(err)
	}
}
