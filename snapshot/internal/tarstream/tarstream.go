package tarstream

import (
	"context"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
)

const (
	// chunkSize is what is handed on at once; large enough that handing on costs nothing beside decompressing.
	chunkSize = 256 << 10
	// firstChunk is smaller, and each one after it twice as large, so that extraction begins with the first bytes.
	firstChunk = 32 << 10
	// chunksAhead bounds the memory of one stream.
	chunksAhead = 4
)

var chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunk is a piece of a tar stream. It is free once both who hash and who extract have used it.
type chunk struct {
	buf   *[chunkSize]byte
	n     int
	users atomic.Int32
}

// tarPipe hands a tar stream from the goroutine that decompresses it to the one that hashes it and to
// Read. Its channels have room for all chunks that there may be, so only taking a place for a new one
// waits.
type tarPipe struct {
	places chan struct{}
	chunks chan *chunk   // to Read
	sums   chan *chunk   // to be hashed
	stop   chan struct{} // closed when nobody reads any more
	err    error         // of decompressing; set before chunks is closed

	chunk *chunk // Read's
	off   int    // in it
}

// Read has read the tar stream of a blob while it is decompressed and hashed ahead of that, by
// goroutines which have ended when it returns. The digest of the blob itself is the ingest's to verify,
// and its stream ends only when that did: so the blob is read to its end. After an error, and at the
// end of ctx, it is closed.
func Read(ctx context.Context, mediaType string, blob io.ReadCloser, sum hash.Hash,
	grow func(ctx context.Context, bytes int64) error, read func(tar io.Reader) error,
) error {
	defer context.AfterFunc(ctx, func() { blob.Close() })() // ends a Read that waits
	growing, giveUp := context.WithCancel(ctx)              // decompressing may wait for memory
	defer giveUp()
	tar, err := decompress.NewReaderWithin(mediaType, blob, func(bytes int64) error { return grow(growing, bytes) })
	if err != nil {
		return err
	}
	p := &tarPipe{
		places: make(chan struct{}, chunksAhead), chunks: make(chan *chunk, chunksAhead),
		sums: make(chan *chunk, chunksAhead),
		stop: make(chan struct{}),
	}
	var both sync.WaitGroup
	both.Go(func() {
		p.decompress(tar)
		tar.Close()
	})
	both.Go(func() {
		for c := range p.sums {
			sum.Write(c.buf[:c.n])
			p.release(c)
		}
	})
	if err = panics.Call("tar", func() error { return read(p) }); err == nil {
		err = interrupt.Copy(ctx, io.Discard, p)
	}
	if err != nil {
		close(p.stop)
		giveUp()
		blob.Close() // it may be waited for
	}
	both.Wait()
	if err == nil {
		err = interrupt.Copy(ctx, io.Discard, blob)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx) // instead of the error of the closed blob
	}
	return err
}

// decompress fills chunks until the stream ends.
func (p *tarPipe) decompress(tar io.Reader) {
	defer close(p.sums)
	defer close(p.chunks)
	defer panics.Recover("decompress", &p.err)
	for size := firstChunk; p.err == nil; size = min(2*size, chunkSize) {
		select {
		case p.places <- struct{}{}:
		case <-p.stop:
			return
		}
		c := &chunk{buf: chunkBuffers.Get().(*[chunkSize]byte)}
		for c.n < size && p.err == nil {
			var n int
			n, p.err = tar.Read(c.buf[c.n:size])
			c.n += n
		}
		c.users.Store(2)
		p.sums <- c
		p.chunks <- c
	}
}

func (p *tarPipe) release(c *chunk) {
	if c.users.Add(-1) == 0 {
		chunkBuffers.Put(c.buf)
		<-p.places
	}
}

// Read returns what was decompressed, and then the error of that or io.EOF.
func (p *tarPipe) Read(b []byte) (int, error) {
	for p.chunk == nil || p.off == p.chunk.n {
		if p.chunk != nil {
			p.release(p.chunk)
			p.chunk = nil
		}
		c, ok := <-p.chunks
		if !ok {
			return 0, p.err
		}
		p.chunk, p.off = c, 0
	}
	n := copy(b, p.chunk.buf[p.off:p.chunk.n])
	p.off += n
	return n, nil
}
