package descriptors

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func poolOf(limit *atomic.Uint64, open int) *Pool {
	return &Pool{limit: limit.Load, open: func(uint64) int { return open }}
}

// TestTake: the shares under several limits if all kinds of work want one at the same time.
func TestTake(t *testing.T) {
	for name, row := range map[string]struct {
		limit       uint64
		open, least int // that are given at once, of all kinds together
	}{
		"nothing left": {20, 20, 1},
		"12 left":      {32, 20, 1},
		"64":           {64, 12, 2},
		"128":          {128, 12, 4},
		"a server's":   {1024, 20, 15},
		"plenty":       {1 << 20, 20, 3 * 300},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var limit atomic.Uint64
				limit.Store(row.limit)
				p := poolOf(&limit, row.open)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				var given, promised atomic.Int64
				for range 300 {
					for k := range kinds {
						wg.Go(func() {
							share, release, err := p.Take(ctx, k)
							if err != nil {
								return
							}
							given.Add(1)
							promised.Add(int64(share))
							<-ctx.Done()
							release()
						})
					}
				}
				synctest.Wait()
				if n := given.Load(); n < int64(row.least) {
					t.Errorf("%d shares, want at least %d", n, row.least)
				}
				// Where nothing runs, one is given in any case.
				if n := row.open + int(promised.Load()); n > max(int(row.limit), row.open+smallest) {
					t.Errorf("%d descriptors are promised of %d", n, row.limit)
				}
				cancel()
				wg.Wait()
				if !p.idle() || len(p.waits) != 0 {
					t.Errorf("left: %v, %v", p.held, p.waits)
				}
			})
		})
	}
}

// TestTakeProgress: even under the smallest limit, extractions and downloads end, although each extraction
// waits for a download.
func TestTakeProgress(t *testing.T) {
	var limit atomic.Uint64
	limit.Store(40)
	p := poolOf(&limit, 15)
	var wg sync.WaitGroup
	for range 200 {
		arrived := make(chan struct{})
		begun := make(chan struct{})
		wg.Go(func() {
			_, release, err := p.Take(t.Context(), Download)
			if err != nil {
				t.Error(err)
				return
			}
			close(begun)
			time.Sleep(time.Millisecond)
			close(arrived)
			release()
		})
		wg.Go(func() {
			<-begun
			_, release, err := p.Take(t.Context(), Extraction)
			if err != nil {
				t.Error(err)
				return
			}
			<-arrived
			release()
		})
	}
	wg.Wait()
}

// TestTakeEnds: a caller that gives up leaves no waiter behind, and waiters notice a raised limit.
func TestTakeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var limit atomic.Uint64
		limit.Store(30)
		p := poolOf(&limit, 20)
		_, release, err := p.Take(t.Context(), Download)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := p.Take(ctx, Download); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		time.AfterFunc(time.Second, func() { limit.Store(1000) })
		_, second, err := p.Take(t.Context(), Download)
		if err != nil {
			t.Fatal(err)
		}
		release()
		release()
		second()
		if !p.idle() {
			t.Errorf("left: %v", p.held)
		}
	})
}

// TestCountOpen counts the open descriptors of this process.
func TestCountOpen(t *testing.T) {
	before := countOpen(Limit())
	f, err := os.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if now := countOpen(Limit()); before < 3 || now != before+1 {
		t.Errorf("%d are open, then %d", before, now)
	}
}
