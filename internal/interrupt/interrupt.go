package interrupt

import (
	"context"
	"io"
)

// Every returns a function that loops call for every step. It returns the cause of the end of ctx, which it looks
// for often enough for steps that take microseconds.
func Every(ctx context.Context) func() error {
	const few = 64
	steps := 0
	return func() error {
		if steps++; steps%few == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
}

// Copy copies until the end of the reader, or of ctx, whose cause it returns then.
func Copy(ctx context.Context, to io.Writer, from io.Reader) error {
	for buf := make([]byte, 256<<10); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
