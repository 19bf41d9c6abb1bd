package tank

import (
	"context"
	"fmt"
)

// Probe returns nil when the database answers readers and writers, and ctx's error when it does not in time.
func (t *Tank) Probe(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() { answer <- t.db.Probe() }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("metadata: no answer: %w", ctx.Err())
	}
}
