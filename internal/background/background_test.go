package background

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestStop: Stop ends the contexts of the work, Wait waits for the work, and a panic ends nothing
// else.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		ended := make(chan error, 1)
		g.Go("work", func(ctx context.Context) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		g.Go("panic", func(context.Context) error { panic("fault") })
		synctest.Wait()
		g.Stop()
		g.Wait()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the work ended with %v", err)
		}
		g.Go("late", func(ctx context.Context) error {
			ended <- ctx.Err()
			return nil
		})
		g.Wait()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("work that began after Stop has a context with %v", err)
		}
	})
}

// TestBind: a bound context ends with its parent, with its group and by its release, and keeps its
// values.
func TestBind(t *testing.T) {
	type key struct{}
	var g Group
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	byParent, release := g.Bind(parent)
	defer release()
	released, release := g.Bind(parent)
	byGroup, end := g.Bind(context.WithoutCancel(parent))
	defer end()
	release()
	if released.Err() == nil || byParent.Err() != nil {
		t.Errorf("after a release: %v, another context: %v", released.Err(), byParent.Err())
	}
	cancel()
	if byParent.Err() == nil || byGroup.Err() != nil {
		t.Errorf("after the end of the parent: %v, a context without it: %v", byParent.Err(), byGroup.Err())
	}
	g.Stop()
	if byGroup.Err() == nil || byGroup.Value(key{}) != "value" {
		t.Errorf("after Stop: %v, value %v", byGroup.Err(), byGroup.Value(key{}))
	}
	if len(g.cancels) != 0 {
		t.Errorf("%d contexts are kept", len(g.cancels))
	}
}
