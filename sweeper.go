package tank

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"
)

// sweeper deletes blobs in the background when no holder keeps them any more, because kubelet measures the
// free space right after containerd's collection. Its goroutine starts with the first request; most commands
// make none.
type sweeper struct {
	kick  chan struct{} // of capacity 1
	run   func()        // sweeps after each kick until stop
	stop  context.CancelFunc
	done  chan struct{} // closed when run has ended
	start sync.Once     // starts run, or closes done when run is never needed
}

// sweepDelay is how long a sweep waits for further requests.
const sweepDelay = 200 * time.Millisecond

func newSweeper(sweep func(context.Context) error) *sweeper {
	ctx, stop := context.WithCancel(context.Background())
	s := &sweeper{kick: make(chan struct{}, 1), stop: stop, done: make(chan struct{})}
	s.run = func() {
		defer close(s.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.kick:
				select { // containerd's collection deletes hundreds of blobs one by one
				case <-time.After(sweepDelay):
				case <-ctx.Done():
					return
				}
				if err := sweep(ctx); err != nil && ctx.Err() == nil {
					log.G(ctx).WithError(err).Warn("sweep")
				}
			}
		}
	}
	return s
}

// request asks for a sweep.
func (s *sweeper) request() {
	s.start.Do(func() { go s.run() })
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// close cancels the running sweep and waits for its end.
func (s *sweeper) close() {
	s.stop()
	s.start.Do(func() { close(s.done) })
	<-s.done
}
