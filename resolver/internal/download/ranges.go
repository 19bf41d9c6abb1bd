package download

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// maxBuffered bounds the memory for ranges of one Downloader, in bytes.
const maxBuffered = 16 << 20

// minChunks is the number of chunks above which a blob is divided into ranges. If the process is
// killed, the chunks in memory are lost, which would be too much of a smaller blob.
const minChunks = 4

// buffers is the memory for the ranges of one Downloader. Each blob takes its buffers in the order
// of its bytes, so that a blob which has buffers has one for its next bytes and can always
// continue. A blob that waits for a buffer therefore waits for one that makes progress.
type buffers struct {
	size int64
	free chan []byte // a nil buffer is not allocated yet
}

// newBuffers returns nil if ranges are not to be used.
func newBuffers(ranges int, chunk int64) *buffers {
	if ranges < 2 || descriptors.Scarce() {
		return nil
	}
	b := &buffers{size: chunk, free: make(chan []byte, max(int64(ranges), maxBuffered/chunk))}
	for range cap(b.free) {
		b.free <- nil
	}
	return b
}

func (b *buffers) get(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-b.free:
		if buf == nil {
			buf = make([]byte, b.size)
		}
		return buf, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *buffers) put(buf []byte) { b.free <- buf }

// wakeBytes is the number of new bytes that wake the writer. To wake it for every packet costs more
// than the download.
const wakeBytes = 256 << 10

// chunk is a range that is being downloaded. Its goroutine appends bytes, and the writer follows.
type chunk struct {
	registry.Range
	connection int
	warm       bool          // the connection has probably served a request before
	grown      chan struct{} // of capacity one: there are new bytes
	done       chan struct{} // closed after the last byte

	buf []byte
	err error // of the download, after done is closed

	mu     sync.Mutex // guards the fields below
	filled int64      // bytes in buf; only the chunk's goroutine changes it
	woken  int64      // value of filled when the writer was last woken
}

func newChunk(r registry.Range, buf []byte) *chunk {
	return &chunk{
		Range: r, buf: buf[:r.End-r.Start], grown: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// grow records n new bytes.
func (c *chunk) grow(n int) {
	c.mu.Lock()
	c.filled += int64(n)
	wake := c.filled-c.woken >= wakeBytes
	if wake {
		c.woken = c.filled
	}
	c.mu.Unlock()
	if wake {
		c.wake()
	}
}

// wake wakes the writer.
func (c *chunk) wake() {
	select {
	case c.grown <- struct{}{}:
	default:
	}
}

func (c *chunk) end(err error) {
	c.err = err
	close(c.done)
}

// drop waits for the end of the chunk and returns its buffer.
func (c *chunk) drop(b *buffers) {
	<-c.done
	b.put(c.buf[:cap(c.buf)])
}

// after waits for bytes behind the first written ones and returns them. No bytes and no error mean
// that the chunk is complete.
func (c *chunk) after(ctx context.Context, written int64) ([]byte, error) {
	for {
		var ended bool
		select {
		case <-c.done:
			ended = true
		default:
		}
		c.mu.Lock()
		filled := c.filled
		c.mu.Unlock()
		if filled > written {
			return c.buf[written:filled], nil
		}
		if ended {
			return nil, c.err
		}
		select {
		case <-c.grown:
		case <-c.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ranges begins with ranges. If the host answers the first request with the whole blob, the
// transfer continues with that answer as one stream.
func (t *transfer) ranges(ctx context.Context, host *registry.Endpoint) error {
	t.trial, t.usedRange = nil, true
	want := t.chunkAt(t.offset)
	resp, err := t.get(ctx, host, want, t.connection)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusPartialContent {
		t.noRanges = true
		_, err := t.stream(ctx, host, resp, registry.Range{})
		return err
	}
	end, err := partial(resp, want, t.desc.Size)
	if err != nil {
		resp.Body.Close()
		return sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return t.parallel(ctx, host, resp, end)
}

// parallel downloads the missing bytes in several ranges at once and writes them in order. The
// first range is the body of resp before end; the body may continue behind it. A range whose
// connection breaks is resumed. If ranges turn out not to be faster, parallel ends without an error
// before the blob is complete.
func (t *transfer) parallel(ctx context.Context, host *registry.Endpoint, resp *http.Response, end int64) error {
	t.stopRanges.Store(false)
	buf, err := t.buffers.get(ctx)
	if err != nil {
		resp.Body.Close()
		return err
	}
	head := newChunk(t.chunkAt(t.offset), buf)
	head.connection = t.connection
	ctx, cancel := context.WithCancel(ctx)
	slots, order := make(chan struct{}, t.link.ranges), make(chan *chunk, t.link.ranges)
	go func() {
		defer close(order) // after the last range has ended
		t.dispatch(ctx, host, head, &rangeAnswer{resp, end}, slots, order)
	}()
	err = t.writeInOrder(ctx, slots, order)
	cancel()
	for c := range order {
		c.drop(t.buffers)
	}
	return err
}

// chunkAt returns the range of the chunk that begins at start.
func (t *transfer) chunkAt(start int64) registry.Range {
	return registry.Range{Start: start, End: min(start+t.buffers.size, t.desc.Size)}
}

// rangeAnswer is an answer whose body has the bytes before end.
type rangeAnswer struct {
	resp *http.Response
	end  int64
}

// dispatch starts the ranges one after another. The capacity of slots bounds the ranges that are
// downloaded or wait to be written. c is the first range, and answer its answer.
func (t *transfer) dispatch(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer,
	slots chan struct{}, order chan<- *chunk,
) {
	var running sync.WaitGroup
	defer running.Wait()
	start := func(c *chunk, first *rangeAnswer) {
		running.Go(func() {
			c.end(func() (err error) {
				defer panics.Recover("blob "+t.desc.Digest.String(), &err)
				return t.fill(ctx, host, c, first)
			}())
		})
		order <- c // never blocks: order has the capacity of slots
	}
	slots <- struct{}{}
	for n := 1; ; n++ {
		start(c, answer)
		if c.End == t.desc.Size {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		buf, err := t.buffers.get(ctx)
		if err != nil {
			return
		}
		if t.stopRanges.Load() {
			t.buffers.put(buf)
			return
		}
		c, answer = newChunk(t.chunkAt(c.End), buf), nil
		c.connection, c.warm = (t.connection+n)%t.link.ranges, n >= t.link.ranges
	}
}

// writeInOrder writes the chunks in order. It returns when dispatch has closed order: at the end of
// the blob, when ranges are stopped, or when the context has ended.
func (t *transfer) writeInOrder(ctx context.Context, slots <-chan struct{}, order <-chan *chunk) error {
	for c := range order {
		err := t.writeChunk(ctx, c)
		c.drop(t.buffers)
		if err != nil {
			return err
		}
		<-slots
	}
	return ctx.Err()
}

func (t *transfer) writeChunk(ctx context.Context, c *chunk) error {
	for {
		p, err := c.after(ctx, t.offset-c.Start)
		if err != nil || len(p) == 0 {
			return err
		}
		if err := t.write(p); err != nil {
			return err
		}
		t.offset += int64(len(p))
	}
}

// fill downloads one chunk and resumes it when its connection breaks. answer is the answer to the
// first request, nil if that has not been sent.
func (t *transfer) fill(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer) error {
	for attempt := 1; ; attempt++ {
		before := c.filled
		err := t.fillOnce(ctx, host, c, answer)
		answer = nil
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !retry.IsTemporary(err) || errors.Is(err, errRange):
			return err
		}
		if c.filled-before >= minProgress {
			attempt = 1
		}
		if attempt >= t.repo.Retry().Attempts {
			return err
		}
		if err := t.repo.Retry().Wait(ctx, attempt, err); err != nil {
			return err
		}
	}
}

func (t *transfer) fillOnce(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer) error {
	asked, begun, before := answer == nil, time.Now(), c.filled
	if asked {
		var err error
		if answer, err = t.askRange(ctx, host, c); err != nil {
			return err
		}
	}
	body, end := answer.resp.Body, answer.end
	defer body.Close()
	var err error
	for c.Start+c.filled < end {
		var n int
		n, err = body.Read(c.buf[c.filled : end-c.Start])
		c.grow(n)
		if at := c.Start + c.filled; err != nil && at < end {
			return broken(ctx, host, at, t.desc.Size, err)
		}
	}
	if asked && err == nil { // otherwise HTTP/2 resets the stream, and HTTP/1 closes the connection
		c.wake()
		registry.ReadEnd(body)
	}
	if end < c.End {
		return sourceError{fmt.Errorf("registry %s: the range ended at byte %d, not at byte %d: %w",
			host.Host, end, c.End, errdefs.ErrUnavailable)}
	}
	if c.warm && before == 0 {
		t.measure(ctx, c.filled, time.Since(begun))
	}
	return nil
}

// askRange asks for the missing bytes of c.
func (t *transfer) askRange(ctx context.Context, host *registry.Endpoint, c *chunk) (*rangeAnswer, error) {
	want := registry.Range{Start: c.Start + c.filled, End: c.End}
	resp, err := t.get(ctx, host, want, c.connection)
	if err != nil {
		if retry.IsTemporary(err) { // the server may be overloaded
			t.decide(ctx, false)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		err = fmt.Errorf("the answer to %q is the whole blob: %w: %w", want.Header(), errRange, errdefs.ErrDataLoss)
	}
	end := int64(0)
	if err == nil {
		end, err = partial(resp, want, t.desc.Size)
	}
	if err != nil {
		resp.Body.Close()
		return nil, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return &rangeAnswer{resp, end}, nil
}

// measure adds a range to the trial, if one is running, and decides when it is over.
func (t *transfer) measure(ctx context.Context, bytes int64, took time.Duration) {
	if t.trial == nil {
		return
	}
	if faster, over := t.trial.add(bytes, took-t.link.minLatency()); over {
		t.decide(ctx, faster)
	}
}

// decide records whether ranges are faster, until the first time that they are not. Several ranges
// that fail at the same time count once.
func (t *transfer) decide(ctx context.Context, faster bool) {
	if faster && t.stopRanges.Load() || !faster && t.stopRanges.Swap(true) {
		return
	}
	log.G(ctx).WithFields(log.Fields{"blob": t.desc.Digest, "faster": faster}).Debug("ranges were tried")
	t.link.recordTrial(faster)
}
