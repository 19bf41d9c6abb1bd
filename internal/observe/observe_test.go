package observe_test

import (
	"context"
	"errors"
	"testing"

	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/observe/observetest"
)

func TestNobodyObserves(t *testing.T) {
	ctx, end := observe.Begin(t.Context(), nil, observe.Event{Kind: observe.Download})
	if ctx != t.Context() {
		t.Error("the context was changed")
	}
	end(observe.Result{})
	observe.Note(ctx, nil, observe.Event{Kind: observe.Hit}, observe.Result{})
	allocs := testing.AllocsPerRun(100, func() {
		_, end := observe.Begin(ctx, nil, observe.Event{Kind: observe.Hit})
		end(observe.Result{})
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestRecorder(t *testing.T) {
	r := observetest.New(t)
	failed := errors.New("failed")
	_, end := observe.Begin(t.Context(), r, observe.Event{Kind: observe.Unpack, Subject: "sha256:aa", Bytes: 3})
	observe.Note(t.Context(), r, observe.Event{Kind: observe.Hit, Subject: "sha256:bb"}, observe.Result{Bytes: 7})
	if r.Open() != 1 || len(r.Ended(observe.Unpack)) != 0 || len(r.Ended(observe.Hit)) != 1 {
		t.Errorf("before the end: %d open, %+v", r.Open(), r.Ended(observe.Hit))
	}
	end(observe.Result{Err: failed, Count: 2})
	end(observe.Result{}) // has no effect
	got := r.Ended(observe.Unpack)
	if r.Open() != 0 || len(got) != 1 || got[0].Subject != "sha256:aa" || got[0].Bytes != 3 ||
		!errors.Is(got[0].Result.Err, failed) || got[0].Result.Count != 2 {
		t.Errorf("after the end: %d open, %+v", r.Open(), got)
	}
	r.Reset()
	if got := r.Ended(observe.Unpack); len(got) != 0 {
		t.Errorf("after Reset: %+v", got)
	}
}

type span struct{}

type tracer struct{}

func (tracer) Begin(ctx context.Context, _ observe.Event) (context.Context, func(observe.Result)) {
	return context.WithValue(ctx, span{}, "span"), func(observe.Result) {}
}

// TestContext shows that an operation goes on with the context of the observer.
func TestContext(t *testing.T) {
	ctx, end := observe.Begin(t.Context(), tracer{}, observe.Event{})
	defer end(observe.Result{})
	if ctx.Value(span{}) != "span" {
		t.Error("the observer's context is lost")
	}
}
