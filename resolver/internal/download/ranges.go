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

// maxBuffered bounds the bytes of ranges that one Fetch holds in memory, all its blobs together.
const maxBuffered = 16 << 20

// worthRanges is how many parts a blob has to have to be downloaded in parts. A kill loses the parts in memory: of a smaller blob, too much of it.
const minChunks = 4

// buffers is the memory that the ranges of one Fetch share. Every blob takes its buffers in the order of its bytes, so who has any has the
// next bytes to be written in one of them, and whoever waits waits for somebody who goes on.
type buffers struct {
	size int64
	free chan []byte // nil ones are not made yet
}

func newBuffers(ranges int, chunk int64) *buffers {
	if ranges < 2 || descriptors.Few() {
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

// tellAfter is how many new bytes wake the one who writes: a wakeup for every packet costs more than the download.
const wakeBytes = 256 << 10

// chunk is a range on its way. The one who downloads appends; the one who writes follows.
type chunk struct {
	registry.Range
	connection int
	warm       bool          // its connection was used before, unless another one was faster to be free
	grown      chan struct{} // holds one: look again
	done       chan struct{} // closed when nothing is appended any more

	buf []byte
	err error // of the download, once done is closed

	mu     sync.Mutex
	filled int64 // bytes of buf; only the one who downloads changes it
	woken  int64 // bytes that the one who writes was woken for
}

func newChunk(s registry.Range, buf []byte) *chunk {
	return &chunk{Range: s, buf: buf[:s.End-s.Start], grown: make(chan struct{}, 1), done: make(chan struct{})}
}

func (c *chunk) grow(n int) {
	c.mu.Lock()
	c.filled += int64(n)
	tell := c.filled-c.woken >= wakeBytes
	if tell {
		c.woken = c.filled
	}
	c.mu.Unlock()
	if tell {
		c.wake()
	}
}

// tell wakes the one who writes.
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

// drop gives the memory back once nothing is appended any more.
func (c *chunk) drop(b *buffers) {
	<-c.done
	b.put(c.buf[:cap(c.buf)])
}

// after waits for bytes behind written. None and no error means that the chunk is complete.
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

// ranges begins with ranges. A host that answers the first one with everything is taken at its word: that answer becomes the one stream.
func (d *download) ranges(ctx context.Context, host *registry.Endpoint) error {
	d.trial, d.usedRange = nil, true
	want := d.span(d.offset)
	resp, err := d.get(ctx, host, want, d.connection)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusPartialContent {
		d.noRanges = true
		_, err := d.stream(ctx, host, resp, registry.Range{})
		return err
	}
	end, err := partial(resp, want, d.desc.Size)
	if err != nil {
		resp.Body.Close()
		return sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return d.parallel(ctx, host, resp, end)
}

// parallel downloads what is lacking in several ranges at once and writes them in order, the first one as it comes. That is what resp's
// body, which was checked and may go on, has before end. A cut range goes on where it was cut. It ends early, without an error, when
// ranges turn out not to pay.
func (d *download) parallel(ctx context.Context, host *registry.Endpoint, resp *http.Response, end int64) error {
	d.stopRanges.Store(false)
	buf, err := d.buffers.get(ctx)
	if err != nil {
		resp.Body.Close()
		return err
	}
	head := newChunk(d.span(d.offset), buf)
	head.connection = d.connection
	ctx, cancel := context.WithCancel(ctx)
	slots, order := make(chan struct{}, d.link.ranges), make(chan *chunk, d.link.ranges)
	go func() {
		defer close(order) // after the last lane has ended
		d.dispatch(ctx, host, head, &rangeAnswer{resp, end}, slots, order)
	}()
	err = d.writeInOrder(ctx, slots, order)
	cancel()
	for c := range order {
		c.drop(d.buffers)
	}
	return err
}

// span is the range that begins at start.
func (d *download) span(start int64) registry.Range {
	return registry.Range{Start: start, End: min(start+d.buffers.size, d.desc.Size)}
}

// part is an answer whose body has the bytes before end.
type rangeAnswer struct {
	resp *http.Response
	end  int64
}

// dispatch starts the ranges one after another; slots has room for those that may be on their way or wait to be written. c is the first, and
// answer is there already.
func (d *download) dispatch(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer,
	slots chan struct{}, order chan<- *chunk,
) {
	var lanes sync.WaitGroup
	defer lanes.Wait()
	start := func(c *chunk, first *rangeAnswer) {
		lanes.Go(func() {
			c.end(func() (err error) {
				defer panics.Recover("blob "+d.desc.Digest.String(), &err)
				return d.fill(ctx, host, c, first)
			}())
		})
		order <- c // has room for as many as slots has
	}
	slots <- struct{}{}
	for n := 1; ; n++ {
		start(c, answer)
		if c.End == d.desc.Size {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		buf, err := d.buffers.get(ctx)
		if err != nil {
			return
		}
		if d.stopRanges.Load() {
			d.buffers.put(buf)
			return
		}
		c, answer = newChunk(d.span(c.End), buf), nil
		c.connection, c.warm = (d.connection+n)%d.link.ranges, n >= d.link.ranges
	}
}

// inOrder writes the chunks.
func (d *download) writeInOrder(ctx context.Context, slots <-chan struct{}, order <-chan *chunk) error {
	for c := range order {
		err := d.writeChunk(ctx, c)
		c.drop(d.buffers)
		if err != nil {
			return err
		}
		<-slots
	}
	return ctx.Err() // that, a verdict and the end of the blob end the order
}

func (d *download) writeChunk(ctx context.Context, c *chunk) error {
	for {
		p, err := c.after(ctx, d.offset-c.Start)
		if err != nil || len(p) == 0 {
			return err
		}
		if err := d.write(p); err != nil {
			return err
		}
		d.offset += int64(len(p))
	}
}

// fill downloads one chunk, going on where it was cut. answer is one that is already there, or nil.
func (d *download) fill(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer) error {
	for attempt := 1; ; attempt++ {
		before := c.filled
		err := d.fillOnce(ctx, host, c, answer)
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
		if attempt >= d.repo.Retry().Attempts {
			return err
		}
		if err := d.repo.Retry().Wait(ctx, attempt, err); err != nil {
			return err
		}
	}
}

func (d *download) fillOnce(ctx context.Context, host *registry.Endpoint, c *chunk, answer *rangeAnswer) error {
	asked, begun, before := answer == nil, time.Now(), c.filled
	if asked {
		var err error
		if answer, err = d.part(ctx, host, c); err != nil {
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
			return broken(ctx, host, at, d.desc.Size, err)
		}
	}
	if asked && err == nil { // to the very end, or the stream is reset and the connection of HTTP/1 lost
		c.wake()
		registry.ReadEnd(body)
	}
	if end < c.End {
		return sourceError{fmt.Errorf("registry %s: the range ended at %d of %d bytes: %w", host.Host, end, c.End, errdefs.ErrUnavailable)}
	}
	if c.warm && before == 0 {
		d.judge(ctx, c.filled, time.Since(begun))
	}
	return nil
}

// part asks for what c lacks.
func (d *download) part(ctx context.Context, host *registry.Endpoint, c *chunk) (*rangeAnswer, error) {
	want := registry.Range{Start: c.Start + c.filled, End: c.End}
	resp, err := d.get(ctx, host, want, c.connection)
	if err != nil {
		if retry.IsTemporary(err) { // who has too much to do with us is asked for less
			d.decide(ctx, false)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		err = fmt.Errorf("asked for %q, got all: %w: %w", want.Header(), errRange, errdefs.ErrDataLoss)
	}
	end := int64(0)
	if err == nil {
		end, err = partial(resp, want, d.desc.Size)
	}
	if err != nil {
		resp.Body.Close()
		return nil, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return &rangeAnswer{resp, end}, nil
}

// judge compares a range with the stream before it, and in the end stops the ranges if they do not pay.
func (d *download) judge(ctx context.Context, bytes int64, took time.Duration) {
	if d.trial == nil {
		return
	}
	if pays, over := d.trial.add(bytes, took-d.link.minLatency()); over {
		d.decide(ctx, pays)
	}
}

// verdict is for ranges until one is against them. Several that are refused at the same time are one.
func (d *download) decide(ctx context.Context, pays bool) {
	if pays && d.stopRanges.Load() || !pays && d.stopRanges.Swap(true) {
		return
	}
	log.G(ctx).WithFields(log.Fields{"blob": d.desc.Digest, "pays": pays}).Debug("ranges were tried")
	d.link.recordTrial(pays)
}
