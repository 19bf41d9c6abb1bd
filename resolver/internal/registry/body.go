package registry

import (
	"context"
	"errors"
	"fmt"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"io"
	"sync/atomic"
	"time"
)

// stallBytes is the least that a body has to bring per StallTimeout. A byte now and then is no download.
const stallBytes = 1 << 10

// watched is a body that is given up when it sends next to nothing for a while.
type watched struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	left   time.Duration // of limit, to wait for the next stallBytes in
	got    int           // bytes of those
	fired  atomic.Bool
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

// Read counts only the time spent waiting for the registry: a slow writer at our side must not end the download.
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

// endWait is how long a body that has brought all bytes is waited for to end.
const endWait = time.Second

// ReadEnd reads a body that should have no more bytes up to its end, so that the connection can be used again. It
// returns how many bytes it found.
func ReadEnd(body io.ReadCloser) int {
	under := body
	if c, ok := body.(interface{ Unwrap() io.ReadCloser }); ok { // it decodes
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
