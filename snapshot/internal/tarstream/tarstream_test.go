package tarstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand"
	"sync"
	"testing"
	"time"
)

// stalled is a blob of which only the beginning has arrived. At its end, Read waits until Close.
type stalled struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func (s *stalled) Read(p []byte) (int, error) {
	if n, err := s.Reader.Read(p); n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	<-s.closed
	return 0, fs.ErrClosed
}

func (s *stalled) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func TestReadTar(t *testing.T) {
	errRead := errors.New("extraction")
	for _, size := range []int{0, 1, firstChunk - 1, firstChunk, firstChunk + 1, chunkSize, 3 << 20} {
		stream := make([]byte, size)
		rand.New(rand.NewSource(int64(size))).Read(stream)
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Write(stream)
		z.Close()
		blob := packed.Bytes()
		sum := sha256.New()
		var got []byte
		err := Read(context.Background(), "", io.NopCloser(bytes.NewReader(blob)), sum, enough,
			func(tar io.Reader) (err error) {
				got, err = io.ReadAll(tar)
				return err
			})
		want := sha256.Sum256(stream)
		if err != nil || !bytes.Equal(got, stream) || !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Errorf("%d bytes: %v, got %d", size, err, len(got))
		}
		sum.Reset() // the hash also contains bytes that the callback did not read
		if err := Read(context.Background(), "", io.NopCloser(bytes.NewReader(blob)), sum, enough,
			func(io.Reader) error { return nil }); err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Errorf("%d bytes, none read: %v", size, err)
		}
		if err := Read(context.Background(), "", io.NopCloser(bytes.NewReader(blob[:len(blob)-1])), sha256.New(),
			enough, func(tar io.Reader) error {
				_, err := io.Copy(io.Discard, tar)
				return err
			}); err == nil {
			t.Errorf("%d bytes: no error for a truncated blob", size)
		}
		if size < 1024 {
			continue // the decompressor waits for the first bytes before Read calls its callback
		}
		// The extraction fails during the download. Read must not wait for the rest of the blob.
		done := make(chan error, 1)
		go func() {
			b := &stalled{Reader: bytes.NewReader(blob[:max(len(blob)-1, 0)]), closed: make(chan struct{})}
			done <- Read(context.Background(), "application/vnd.oci.image.layer.v1.tar+gzip", b, sha256.New(), enough,
				func(io.Reader) error {
					return errRead
				})
		}()
		select {
		case err := <-done:
			if !errors.Is(err, errRead) {
				t.Errorf("%d bytes: got error %v, want that of the extraction", size, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d bytes: Read hangs after the extraction failed", size)
		}
	}
}

func enough(context.Context, int64) error { return nil }
