package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
)

// stallBytes is the number of bytes that a body must bring within each StallTimeout. A body with
// fewer has stalled.
const stallBytes = 1 << 10

// watched is a body whose request is canceled when it stalls.
type watched struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	left   time.Duration // remaining time to wait for the next stallBytes
	got    int           // the number of these bytes that have arrived
	fired  atomic.Bool   // whether timer has canceled the request
}

func watch(body io.ReadCloser, cancel context.CancelCauseFunc, limit time.Duration) *watched {
	w := &watched{ReadCloser: body, cancel: cancel, limit: limit, left: limit}
	w.timer = time.AfterFunc(limit, func() {
		w.fired.Store(true)
		cancel(httperror.ErrStalled)
	})
	w.timer.Stop()
	return w
}

// Read counts only the time during which it waits for the registry, so that a slow store does not
// end a download.
func (w *watched) Read(p []byte) (int, error) {
	start := time.Now()
	w.timer.Reset(w.left)
	n, err := w.ReadCloser.Read(p)
	w.timer.Stop()
	if w.got += n; w.got >= stallBytes {
		w.got, w.left = 0, w.limit
	} else {
		w.left = max(w.left-time.Since(start), time.Millisecond)
	}
	if err != nil && !errors.Is(err, io.EOF) && w.fired.Load() {
		err = fmt.Errorf("%w for %v", httperror.ErrStalled, w.limit)
	}
	return n, err
}

// endWait bounds the wait for the end of a body that has brought all bytes.
const endWait = time.Second

// ReadEnd reads the end of a body that should have no more bytes, so that its connection can be
// reused. It returns the number of bytes that it found, at most one. It waits up to a second.
func ReadEnd(body io.ReadCloser) int {
	under := body
	if c, ok := body.(interface{ Unwrap() io.ReadCloser }); ok { // a body that is decoded
		under = c.Unwrap()
	}
	if w, ok := under.(*watched); ok {
		w.left = min(w.left, endWait)
	}
	n, _ := body.Read(make([]byte, 1))
	return n
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}
