package download

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rate"
)

// TestInFlightSources checks which downloads of one blob wait for each other. Each row is one blob.
func TestInFlightSources(t *testing.T) {
	t.Parallel()
	const window = 100 * time.Millisecond
	enough := int64(rate.Slow) // much more than the rate in a window
	for name, tc := range map[string]struct {
		fast       bool     // the first download is fast
		sources    []string // of the downloads after the first, whose source is "one"
		admitted   []bool   // whether each begins within some windows
		arrives    int      // which download completes the blob; 0 is the first
		cancelled  []int    // downloads that are canceled then
		firstFails bool
	}{
		"slow, another registry":  {false, []string{"two"}, []bool{true}, 1, []int{0}, false},
		"slow, the same registry": {false, []string{"one"}, []bool{false}, 0, nil, false},
		"fast, another registry":  {true, []string{"two"}, []bool{false}, 0, nil, false},
		"slow ones from everywhere": {false, []string{"two", "three", "two"}, []bool{true, true, false}, 2,
			[]int{0, 1}, false},
		"the slow one brings it after": {false, []string{"two"}, []bool{true}, 0, []int{1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := NewInFlight()
			f.window = window
			d := digest.FromString("blob")
			type taken struct {
				ctx  context.Context
				done func(bool)
			}
			var turns []taken
			ctx, first, done, err := f.begin(t.Context(), d, "one")
			if err != nil {
				t.Fatal(err)
			}
			turns = append(turns, taken{ctx, done})
			if tc.fast {
				stop := make(chan struct{})
				defer close(stop)
				go func() {
					for {
						select {
						case <-stop:
							return
						case <-time.After(window / 10):
							first.bytes.Add(enough)
						}
					}
				}()
			}
			for i, source := range tc.sources {
				patience := 6 * window
				if tc.admitted[i] {
					patience = 10 * time.Second
				}
				wait, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				own, _, done, err := f.begin(wait, d, source)
				if (err == nil) != tc.admitted[i] {
					t.Fatalf("%s: %v", source, err)
				}
				if err == nil {
					turns = append(turns, taken{own, done})
				}
			}
			turns[tc.arrives].done(true)
			for i, turn := range turns {
				ended := false
				for _, c := range tc.cancelled {
					ended = ended || c == i
				}
				if i != tc.arrives && errors.Is(context.Cause(turn.ctx), errDownloadedElsewhere) != ended {
					t.Errorf("download %d: %v", i, context.Cause(turn.ctx))
				}
				if i != tc.arrives {
					turn.done(false)
				}
			}
			if len(f.blobs) != 0 {
				t.Errorf("%d blobs are left", len(f.blobs))
			}
		})
	}
}

// TestInFlightWait checks that a waiting download continues when the running one ends, and stops
// when its context ends.
func TestInFlightWait(t *testing.T) {
	t.Parallel()
	f := NewInFlight()
	d := digest.FromString("blob")
	_, _, done, err := f.begin(t.Context(), d, "one")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, _, err := f.begin(ctx, d, "two"); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled wait: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { done(false) })
	began := time.Now()
	_, _, again, err := f.begin(t.Context(), d, "one")
	if err != nil || time.Since(began) > rate.Window/2 {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	again(true)
}
