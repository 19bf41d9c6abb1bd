package interrupt

import (
	"context"
	"io"
)

// Every returns a function that loops call for every step. It returns the cause of the end of ctx, which it looks
// for often enough for steps that take microseconds.
func Every(ctx context.Context) func() error {
	const few = 64
	steps, work := 0, workOf(ctx)
	return func() error {
		if steps++; steps%few != 0 {
			return nil
		}
		work.step()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
}

// Copy copies until the end of the reader, or of ctx, whose cause it returns then.
func Copy(ctx context.Context, to io.Writer, from io.Reader) error {
	work := workOf(ctx)
	for buf := make([]byte, 256<<10); ; {
		work.step()
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
