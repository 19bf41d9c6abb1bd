package budget_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/internal/budget"
)

// TestBudget: claims share the budget, one goes over it, and the next one waits for that.
func TestBudget(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	b := budget.New(100)
	grow := func(c *budget.Claim, bytes int64, want error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := c.Grow(ctx, bytes); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, not %v", bytes, err, want)
		}
	}
	readied := 0
	first, second := b.Claim(nil), b.Claim(func(context.Context) error { readied++; return nil })
	grow(first, 60, nil)
	grow(second, 40, nil)
	grow(second, 1000, nil) // on top
	grow(second, 1000, nil)
	grow(first, 1, context.DeadlineExceeded)
	second.Release()
	grow(first, 40, nil)
	grow(first, 1, nil)
	grow(second, 1, context.DeadlineExceeded)
	first.Release()
	grow(second, 100, nil)
	if readied != 2 {
		t.Errorf("asked %d times whether it was ready, not twice", readied)
	}
	broken := errors.New("broken")
	grow(b.Claim(func(context.Context) error { return broken }), 1, broken)
}

// TestOneOverBudget: of many claims that need more than the budget, only one is over it at any time, and all end.
func TestOneOverBudget(t *testing.T) {
	t.Parallel()
	b := budget.New(1000)
	var above atomic.Int64
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c := b.Claim(nil)
			defer c.Release()
			for taken := int64(0); taken < 500; taken += 10 {
				if err := c.Grow(context.Background(), 10); err != nil {
					t.Error(err)
				}
			}
			if above.Add(500) > 1500 {
				t.Error("more than the budget and one claim")
			}
			time.Sleep(time.Millisecond)
			above.Add(-500)
		})
	}
	all.Wait()
}

func ExampleClaim_Grow() {
	b := budget.New(64 << 20)
	c := b.Claim(nil)
	defer c.Release()
	fmt.Println(c.Grow(context.Background(), 1<<20))
	// Output: <nil>
}

// TestTogether: two goroutines can let one claim grow, even while it waits to go over the budget. Neither
// waits for the memory of the other.
func TestTogether(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b := budget.New(1000)
	other, c := b.Claim(nil), b.Claim(nil)
	if err := other.Grow(ctx, 2000); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for range 30 {
				if err := c.Grow(ctx, 40); err != nil {
					t.Error(err)
				}
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	other.Release()
	both.Wait()
	c.Release()
	if err := other.Grow(ctx, 1000); err != nil {
		t.Errorf("not all memory came back: %v", err)
	}
}
