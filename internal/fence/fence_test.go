package fence

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// hang is work that hangs until it is released, and counts how often it began.
type hang struct {
	release chan struct{}
	began   atomic.Int32
	removed atomic.Int32
	steps   atomic.Uint64
	result  string
	err     error
}

func newHang() *hang { return &hang{release: make(chan struct{}), result: "made"} }

func (h *hang) work(context.Context) (any, error) {
	h.began.Add(1)
	<-h.release
	return h.result, h.err
}

func (h *hang) call(c *Class, key string) Call {
	return Call{
		Name: key, Class: c, Key: func() string { return key }, Subject: key,
		Undo: func(result any) error {
			if result != any("made") {
				return fmt.Errorf("undoes %v", result)
			}
			h.removed.Add(1)
			return nil
		},
	}
}

// within fails the test if fn takes longer than d.
func within(t *testing.T, d time.Duration, fn func()) {
	t.Helper()
	begin := time.Now()
	fn()
	if took := time.Since(begin); took > d {
		t.Errorf("answered after %s", took)
	}
}

// TestDo: what a call, its repetition and what it made become, depending on when the work ends and
// what the caller does meanwhile.
func TestDo(t *testing.T) {
	type world struct {
		f   *Fence
		c   *Class
		h   *hang
		ctx context.Context
		end context.CancelFunc
	}
	repeat := func(w *world) error {
		_, err := w.f.Do(context.Background(), w.h.call(w.c, "k"), w.h.work)
		return err
	}
	for name, tc := range map[string]struct {
		err   error
		after func(t *testing.T, w *world)

		began, removed int32
		canceled       bool // the caller goes away after a second
	}{
		"nobody asks": {began: 1, removed: 1, after: func(_ *testing.T, w *world) { close(w.h.release) }},
		"nobody asks after an error": {began: 1, err: errors.New("no"), after: func(_ *testing.T, w *world) {
			close(w.h.release)
		}},
		"joined while it runs": {began: 1, after: func(t *testing.T, w *world) {
			time.AfterFunc(time.Second, func() { close(w.h.release) })
			if err := repeat(w); err != nil {
				t.Error(err)
			}
		}},
		"joined afterwards": {began: 1, after: func(t *testing.T, w *world) {
			close(w.h.release)
			time.Sleep(defaultKeep - time.Second)
			if err := repeat(w); err != nil {
				t.Error(err)
			}
		}},
		"repeated in vain, then forgotten": {began: 1, removed: 1, after: func(t *testing.T, w *world) {
			for range 3 {
				within(t, DefaultLimit, func() {
					if err := repeat(w); !errdefs.IsUnavailable(err) {
						t.Error(err)
					}
				})
			}
			close(w.h.release)
		}},
		"used under its name": {began: 1, after: func(_ *testing.T, w *world) {
			close(w.h.release)
			time.Sleep(time.Second)
			w.f.Known(func() string { return "k" })
		}},
		"the caller goes": {began: 1, removed: 1, canceled: true, after: func(_ *testing.T, w *world) {
			close(w.h.release)
		}},
		"the caller goes and comes again": {began: 2, removed: 1, canceled: true, after: func(t *testing.T, w *world) {
			time.AfterFunc(time.Second, func() { close(w.h.release) })
			if err := repeat(w); err != nil {
				t.Error(err)
			}
		}},
		"the server ends": {began: 1, removed: 1, after: func(_ *testing.T, w *world) {
			close(w.h.release)
			w.f.Close()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{f: New(nil), c: NewClass("test", 8), h: newHang()}
				w.h.err = tc.err
				w.ctx, w.end = context.WithCancel(t.Context())
				defer w.end()
				if tc.canceled {
					time.AfterFunc(time.Second, w.end)
				}
				within(t, DefaultLimit, func() {
					_, err := w.f.Do(w.ctx, w.h.call(w.c, "k"), w.h.work)
					if !tc.canceled && !errdefs.IsUnavailable(err) || tc.canceled && !errdefs.IsCanceled(err) {
						t.Errorf("hanging work: %v", err)
					}
				})
				tc.after(t, w)
				time.Sleep(time.Minute)
				w.f.Close()
				if began, removed := w.h.began.Load(), w.h.removed.Load(); began != tc.began || removed != tc.removed {
					t.Errorf("began %d times, removed %d times", began, removed)
				}
				if n := len(w.c.slots) + int(w.c.left.Load()) + int(w.f.known.Load()) + w.f.kept +
					len(w.f.byKey); n != 0 {
					t.Errorf("left over: %d slots, %d left, %d known, %d kept", len(w.c.slots), w.c.left.Load(),
						w.f.known.Load(), w.f.kept)
				}
			})
		})
	}
}

// TestAnswers: a call that ends in time has the result of its work, its error, and the values and the
// end of its context.
func TestAnswers(t *testing.T) {
	type key struct{}
	f, c := New(nil), NewClass("test", 2)
	defer f.Close()
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	got, err := f.Do(ctx, Call{Name: "x", Class: c},
		func(ctx context.Context) (any, error) { return ctx.Value(key{}), nil })
	if got != any("value") || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	want := errors.New("no")
	if _, err := f.Do(ctx, Call{Name: "x", Class: c},
		func(context.Context) (any, error) { return nil, want }); err != want {
		t.Errorf("%v", err)
	}
	_, err = f.Do(ctx, Call{Name: "x", Class: c}, func(context.Context) (any, error) { panic("x") })
	if !errdefs.IsInternal(err) {
		t.Errorf("after a panic: %v", err)
	}
	ended := make(chan struct{})
	_, err = f.Do(ctx, Call{Name: "x", Class: c}, func(ctx context.Context) (any, error) {
		cancel()
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	if !errdefs.IsCanceled(err) {
		t.Errorf("after the end of the context: %v", err)
	}
	<-ended
}

// TestBound: of calls whose work hangs, a bounded number is in flight. Further ones are answered at
// once, calls of another class are served, and all is well afterwards.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 16
		f, hanging, other := New(nil), NewClass("hanging", most), NewClass("other", most)
		h := newHang()
		var refused, late atomic.Int32
		for n := range 500 {
			go func() {
				begin := time.Now()
				_, err := f.Do(context.Background(), h.call(hanging, fmt.Sprint(n)), h.work)
				if !errdefs.IsUnavailable(err) {
					t.Errorf("call %d: %v", n, err)
				}
				if took := time.Since(begin); took > DefaultLimit {
					late.Add(1)
				} else if took == 0 {
					refused.Add(1)
				}
			}()
		}
		synctest.Wait()
		time.Sleep(DefaultLimit)
		synctest.Wait()
		if n := h.began.Load(); n != most {
			t.Errorf("%d began", n)
		}
		within(t, 0, func() {
			if _, err := f.Do(t.Context(), h.call(hanging, "new"), h.work); !errdefs.IsUnavailable(err) {
				t.Error(err)
			}
			if _, err := f.Do(t.Context(), Call{Name: "o", Class: other}, func(context.Context) (any, error) {
				return nil, nil
			}); err != nil {
				t.Error(err)
			}
		})
		if n := late.Load(); n > 0 {
			t.Errorf("%d calls were answered late", n)
		}
		close(h.release)
		synctest.Wait()
		if _, err := f.Do(t.Context(), h.call(hanging, "new"), h.work); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		f.Close()
	})
}

// TestProgress: work may take longer than the limit while its progress grows, and not afterwards.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c, h := New(nil), NewClass("test", 2), newHang()
		call := h.call(c, "k")
		call.Progress = h.steps.Load
		go func() {
			for range 20 {
				time.Sleep(time.Second)
				h.steps.Add(1)
			}
		}()
		begin := time.Now()
		_, err := f.Do(t.Context(), call, h.work)
		if took := time.Since(begin); !errdefs.IsUnavailable(err) || took < 24*time.Second || took > 25*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		close(h.release)
		f.Close()
	})
}

// TestStream: a stream ends within the limit when its work hangs, and not while the client takes its time.
func TestStream(t *testing.T) {
	nothing := func() error { return nil }
	slow := func(d time.Duration) func() error {
		return func() error { time.Sleep(d); return nil }
	}
	for name, tc := range map[string]struct {
		work    func(turns *Turns) error
		takes   time.Duration
		refused bool
	}{
		"messages": {func(turns *Turns) error { return errors.Join(turns.Client(nothing), turns.Client(nothing)) },
			0, false},
		"a slow client": {func(turns *Turns) error { return turns.Client(slow(time.Hour)) }, time.Hour, false},
		"slow work": {func(turns *Turns) error {
			for range 10 {
				time.Sleep(3 * time.Second)
				if err := turns.Client(nothing); err != nil {
					return err
				}
			}
			return nil
		}, 30 * time.Second, false},
		"hanging work": {func(turns *Turns) error {
			if err := turns.Client(slow(time.Minute)); err != nil {
				return err
			}
			time.Sleep(10 * time.Minute)
			if err := turns.Client(func() error { panic("a message to nobody") }); !errdefs.IsUnavailable(err) {
				return err
			}
			return nil
		}, time.Minute + 4*time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, c := New(nil), NewClass("test", 2)
				var turns Turns
				begin := time.Now()
				err := f.Stream(t.Context(), Call{Name: name, Class: c}, &turns,
					func() error { return tc.work(&turns) })
				if took := time.Since(begin); took < tc.takes || took > tc.takes+time.Second {
					t.Errorf("ended after %s", took)
				}
				if tc.refused != errdefs.IsUnavailable(err) || !tc.refused && err != nil {
					t.Errorf("%v", err)
				}
				f.Close()
				if n := len(c.slots) + int(c.left.Load()); n != 0 {
					t.Errorf("%d slots, %d left", len(c.slots), c.left.Load())
				}
			})
		})
	}
}

func BenchmarkDo(b *testing.B) {
	f, c := New(nil), NewClass("test", 8)
	defer f.Close()
	call := Call{Name: "x", Class: c, Progress: func() uint64 { return 0 }}
	for b.Loop() {
		if _, err := f.Do(b.Context(), call, func(context.Context) (any, error) { return nil, nil }); err != nil {
			b.Fatal(err)
		}
	}
}
