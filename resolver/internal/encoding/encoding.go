// Package encoding removes HTTP content encodings from the answers of registries.
//
// Tank does not ask for content encodings. A proxy may compress an answer nevertheless, which has
// to be undone. A registry may also state as an encoding that a layer is itself compressed with
// gzip, which must not be undone. Only the digest shows which of the two it is.
//
// The package owns nothing on disk.
//
// Its invariant: it reads and decodes a bounded number of bytes.
//
// The surprising rule: whether to decode a blob is a guess. If the digest shows that it was wrong,
// the caller repeats the request and asks for the other choice.
package encoding

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxCodings bounds the nested encodings that are undone.
const maxCodings = 2

// Of returns the content encodings of an answer except identity, in the order in which they were
// applied.
func Of(h http.Header) (all []string) {
	for _, field := range h.Values("Content-Encoding") {
		for c := range strings.SplitSeq(field, ",") {
			c = strings.ToLower(strings.TrimSpace(c))
			switch c {
			case "", "identity":
			case "x-gzip":
				all = append(all, "gzip")
			default:
				all = append(all, c)
			}
		}
	}
	return all
}

// decode undoes encodings. It keeps no more in memory than the window that every decoder has to
// support (RFC 9659).
func decode(all []string, r io.Reader) (io.ReadCloser, error) {
	if len(all) > maxCodings {
		return nil, fmt.Errorf("%d nested content encodings", len(all))
	}
	body := io.NopCloser(r)
	for i := len(all) - 1; i >= 0; i-- {
		under := bufio.NewReader(body)
		var err error
		switch all[i] {
		case "gzip":
			body, err = gzip.NewReader(under)
		case "deflate": // zlib by the standard; many servers leave out the header
			if head, _ := under.Peek(2); isZlib(head) {
				body, err = zlib.NewReader(under)
			} else {
				body = flate.NewReader(under)
			}
		case "zstd":
			var z *zstd.Decoder
			z, err = zstd.NewReader(under, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(8<<20))
			if err == nil {
				body = z.IOReadCloser()
			}
		default:
			return nil, fmt.Errorf("content encoding %.50q is not known", all[i])
		}
		if err != nil {
			return nil, fmt.Errorf("content encoding %s: %w", all[i], err)
		}
	}
	return body, nil
}

func isZlib(head []byte) bool {
	return len(head) == 2 && head[0]&0x0f == 8 && (uint(head[0])<<8|uint(head[1]))%31 == 0
}

func isCompressed(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// ReadAll reads all of a small answer. It undoes the encodings unless the bytes hash to want or do
// not have the encodings. A body or its decoded bytes beyond limit, and a damaged encoding, are
// errors of class errdefs.ErrDataLoss.
func ReadAll(resp *http.Response, want digest.Digest, limit int64) ([]byte, error) {
	data, err := readAtMost(resp.Body, limit)
	all := Of(resp.Header)
	if err != nil || len(all) == 0 || want != "" && digest.FromBytes(data) == want {
		return data, err
	}
	if !possible(all, data) {
		return data, nil
	}
	body, err := decode(all, bytes.NewReader(data))
	if err == nil {
		defer body.Close()
		data, err = readAtMost(body, limit)
	}
	if err != nil && !errdefs.IsDataLoss(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return data, err
}

// coded is the body of an answer that has encodings, decoded or not, whichever seems right. The
// bytes that it reads from the registry are bounded. The end of the body and a damaged encoding are
// errors of class errdefs.ErrDataLoss: a reader that has all bytes of the blob does not read the
// end, and any other has made the wrong choice.
type coded struct {
	io.Reader
	raw     *rawBody
	codings []string
	done    io.Closer // the decoder; nil: the body is not decoded
}

// rawBody counts the bytes that are read of a body, and keeps its error.
type rawBody struct {
	io.ReadCloser
	left int64 // bytes that may still be read
	err  error // nil also at the end
}

func (b *rawBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooMuch
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

var errTooMuch = errors.New("more bytes than an encoding of the blob can have")

func (c *coded) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	switch {
	case err == nil:
		return n, nil
	case c.raw.err != nil:
		return n, c.raw.err
	case errors.Is(err, io.EOF):
		err = errors.New("the body has ended")
	}
	return n, fmt.Errorf("content encoding %.50q: %w: %w", c.codings, err, errdefs.ErrDataLoss)
}

// Unwrap returns the body below the encodings.
func (c *coded) Unwrap() io.ReadCloser { return c.raw.ReadCloser }

func (c *coded) Close() error {
	if c.done != nil {
		c.done.Close()
	}
	return c.raw.Close()
}

// peeked is the number of bytes by which an encoded body is judged.
const peeked = 1 << 10

// Undo replaces the body of an answer that has content encodings, so that it seems to bring the
// bytes of the blob, and reports whether the answer has any. If the bytes then do not hash to the
// digest, the caller asks again with other set, which makes Undo take the other choice.
func Undo(resp *http.Response, desc ocispec.Descriptor, other bool) (encoded bool, err error) {
	all := Of(resp.Header)
	length, size := resp.ContentLength, desc.Size
	if len(all) == 0 || length == size {
		return false, nil
	}
	raw := &rawBody{ReadCloser: resp.Body, left: 2*min(size, 1<<60) + 64<<10}
	under := bufio.NewReaderSize(raw, 4<<10)
	head, _ := under.Peek(peeked) // fewer bytes if the body is shorter
	body := &coded{Reader: under, raw: raw, codings: all}
	switch undo := possible(all, head); {
	case !undo && length >= 0:
		return true, fmt.Errorf("content encoding %.50q: the body has %d bytes, the blob has %d: %w",
			all, length, size, errdefs.ErrDataLoss)
	case undo && (length >= 0 || seemsEncoded(all, head, desc.MediaType) != other):
		decoded, err := decode(all, under)
		switch {
		case raw.err != nil:
			return true, fmt.Errorf("%w: %w", raw.err, errdefs.ErrUnavailable)
		case err != nil:
			return true, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
		}
		body.Reader, body.done = decoded, decoded
		resp.ContentLength = -1
		resp.Header.Del("Accept-Ranges") // ranges would be ranges of the encoded bytes
	}
	resp.Body = body
	return true, nil
}

// possible reports whether bytes that begin with head may have these encodings.
func possible(all []string, head []byte) bool {
	switch all[len(all)-1] {
	case "gzip", "zstd":
		return isCompressed(head)
	case "deflate":
		return true
	}
	return false
}

// seemsEncoded guesses whether bytes that begin with head have to be decoded to become the blob: if
// the decoded bytes are compressed as well, or if the media type is not that of compressed bytes.
func seemsEncoded(all []string, head []byte, mediaType string) bool {
	if body, err := decode(all, bytes.NewReader(head)); err == nil {
		defer body.Close()
		inside := make([]byte, 4)
		if n, _ := io.ReadFull(body, inside); isCompressed(inside[:n]) {
			return true
		}
	}
	return !strings.HasSuffix(mediaType, "gzip") && !strings.HasSuffix(mediaType, "zstd")
}

// readAtMost reads everything, but fails beyond limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than %d bytes: %w", limit, errdefs.ErrDataLoss)
	}
	return data, nil
}
