package snapshot

import "context"

// everyFew returns a function that loops call for every step. It returns the cause of the end of ctx, which it looks for
// often enough for steps that take microseconds.
func everyFew(ctx context.Context) func() error {
	const few = 64
	steps := 0
	return func() error {
		if steps++; steps%few == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
}
