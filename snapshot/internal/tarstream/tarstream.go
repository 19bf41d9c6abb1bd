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
	// chunkSize is the size of a buffer in bytes. It is large enough that passing buffers between goroutines costs
	// little beside decompressing.
	chunkSize = 256 << 10
	// firstChunk is the size of the first chunk. Each further one is twice as large, up to chunkSize, so that
	// extraction begins with the first bytes.
	firstChunk = 32 << 10
	// chunksAhead is the largest number of chunks of one stream, which limits its memory.
	chunksAhead = 4
)

var chunkBuffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunk is a piece of a tar stream. Its buffer is free once the chunk was hashed and read.
type chunk struct {
	buf   *[chunkSize]byte
	n     int          // bytes in buf
	users atomic.Int32 // 2, less one when it was hashed and one when it was read
}

// tarPipe passes a tar stream from the goroutine that decompresses it to the one that hashes it and to the method Read.
// The channels chunks and sums have room for all chunks that may exist, so the decompressing goroutine waits only for
// room in places.
type tarPipe struct {
	places chan struct{} // has an element for each chunk that is in use
	chunks chan *chunk   // to be read
	sums   chan *chunk   // to be hashed
	stop   chan struct{} // closed after an error: nothing reads chunks any more
	err    error         // of decompressing; set before chunks is closed

	chunk *chunk // the chunk that the method Read copies from; nil: it takes the next one
	off   int    // how many bytes of chunk were read
}

// Read calls read with the tar stream of a blob. Two goroutines work ahead of read: one decompresses the blob, the
// other writes the tar to sum. Both have ended when Read returns. The decompressor calls grow before it takes more
// memory; the context of grow ends when Read fails.
//
// Read reads the blob to its end, also beyond the end of the tar: the ingest verifies the digest of the blob, and the
// stream of the blob ends only after that. If read fails or ctx ends, Read closes the blob, so that no goroutine waits
// for it. The caller closes the blob in any case.
func Read(ctx context.Context, mediaType string, blob io.ReadCloser, sum hash.Hash,
	grow func(ctx context.Context, bytes int64) error, read func(tar io.Reader) error,
) error {
	defer context.AfterFunc(ctx, func() { blob.Close() })() // ends a read of the blob that waits for bytes
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
	var workers sync.WaitGroup
	workers.Go(func() {
		p.decompress(tar)
		tar.Close()
	})
	workers.Go(func() {
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
		blob.Close() // decompress may be waiting for its bytes
	}
	workers.Wait()
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

// release ends one of the two uses of a chunk.
func (p *tarPipe) release(c *chunk) {
	if c.users.Add(-1) == 0 {
		chunkBuffers.Put(c.buf)
		<-p.places
	}
}

// Read returns the decompressed bytes, and after them the error of decompressing or io.EOF.
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
		interrupt.ShareStep()
	}
	n := copy(b, p.chunk.buf[p.off:p.chunk.n])
	p.off += n
	return n, nil
}
