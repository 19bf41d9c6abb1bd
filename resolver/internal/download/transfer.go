package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/internal/encoding"
	"github.com/tank-snapshotter/tank/resolver/internal/httperror"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// transfer passes the bytes of one blob to write, in order and each byte once.
type transfer struct {
	repo          *registry.Repository
	desc          ocispec.Descriptor
	write         func([]byte) error // an error of the store; it ends the transfer
	buffers       *buffers           // memory for ranges; nil: one stream
	link          *linkState         // decides whether to use ranges; not nil if buffers is not nil
	slot          *slot              // counts the received bytes; nil: they are not counted
	connection    int                // number of the connection of the stream and of the first range
	deadline      time.Time          // for a document; zero: none
	offset        int64              // bytes written, including those of an earlier download
	received      int64              // bytes written by this transfer
	host          int                // index of the current host; earlier hosts have failed
	noRanges      bool               // the registry does not handle ranges correctly
	usedRange     bool               // the last attempt asked for a range
	encoded       atomic.Bool        // an answer had a content encoding, which may belong to the blob itself
	otherEncoding bool               // an earlier transfer decoded, or did not decode, and was wrong
	trial         *trial             // of ranges against the stream; nil: no trial is running
	stopRanges    atomic.Bool        // ranges are not faster than one stream
}

// sourceError is an error of the registry. Every other error is one of the store, against which
// another host or attempt does not help.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

func isSource(err error) bool { return errors.As(err, new(sourceError)) }

// errRange is part of the error of a host that does not handle ranges correctly.
var errRange = errors.New("bad answer to a range")

// minProgress is the number of new bytes with which an attempt counts as successful.
const minProgress = 64 << 10

// run writes the missing bytes. It asks the hosts in order, and continues with a host as long as
// attempts bring new bytes.
func (t *transfer) run(ctx context.Context) error {
	if t.offset > t.desc.Size {
		return fmt.Errorf("the ingest has %d bytes, the blob has %d: %w", t.offset, t.desc.Size, errdefs.ErrDataLoss)
	}
	if t.buffers != nil && t.desc.Size > minChunks*t.buffers.size {
		connection, end := t.link.begin()
		defer end()
		t.connection = connection
	}
	var first error
	for ; t.offset < t.desc.Size && t.host < len(t.repo.Hosts); t.host++ {
		host := t.repo.Hosts[t.host]
		if !host.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		last := t.host == len(t.repo.Hosts)-1
		bounded, cancel := retry.Within(ctx, t.deadline, last)
		err, final := t.fromHost(bounded, host, last)
		if err != nil && retry.Expired(ctx, bounded) {
			err, final = retry.TimeoutError("registry "+host.Host, t.repo.DocumentTimeout()), false
		}
		cancel()
		if err == nil || final {
			return err
		}
		if first == nil || errdefs.IsNotFound(first) {
			first = err
		}
	}
	if t.offset < t.desc.Size && first == nil {
		first = t.repo.NoHostError()
	}
	t.host = min(t.host, len(t.repo.Hosts)-1)
	return first
}

// fromHost downloads from one host until the blob is complete or all attempts have failed. final
// reports that no other host is to be asked.
func (t *transfer) fromHost(ctx context.Context, host *registry.Endpoint, last bool) (err error, final bool) {
	for attempt := 1; ; attempt++ {
		before := t.offset
		err := t.attempt(ctx, host)
		switch {
		case err == nil:
			return nil, true
		case ctx.Err() != nil || !isSource(err):
			return err, true
		case errors.Is(err, errRange) && !t.noRanges:
			t.noRanges = true
			continue // without a wait, because the next request is another one
		case errdefs.IsDataLoss(err):
			return err, last || t.offset > before
		case !retry.IsTemporary(err):
			return err, false
		}
		if t.offset-before >= minProgress {
			attempt = 1
		}
		switch {
		case attempt < t.repo.Retry().Attempts && (last || t.offset > before):
		case last && t.usedRange && mayRefuseRange(err):
			t.noRanges = true // one more attempt
		default:
			return err, false
		}
		if err := t.repo.Retry().Wait(ctx, attempt, err); err != nil {
			return err, true
		}
	}
}

// attempt downloads the missing bytes until the end or an error, in one stream or in ranges as the
// link suggests.
func (t *transfer) attempt(ctx context.Context, host *registry.Endpoint) error {
	for {
		var err error
		if t.divisible() && t.link.startDivided() {
			err = t.ranges(ctx, host)
		} else {
			err = t.single(ctx, host)
		}
		if err != nil || t.offset == t.desc.Size {
			return err
		}
	}
}

// divisible reports whether the missing bytes may be divided into ranges.
func (t *transfer) divisible() bool {
	return t.buffers != nil && !t.noRanges && t.desc.Size-t.offset > minChunks*t.buffers.size
}

// single asks for all missing bytes. If the answer is slower than the link may allow, it becomes
// the first of several ranges.
func (t *transfer) single(ctx context.Context, host *registry.Endpoint) error {
	want := registry.Range{}
	if !t.noRanges {
		want.Start = t.offset
	}
	t.usedRange = want.Start > 0
	resp, err := t.get(ctx, host, want, t.connection)
	if err != nil {
		return err
	}
	divide, err := t.stream(ctx, host, resp, want)
	if divide {
		t.usedRange = true
		return t.parallel(ctx, host, resp, t.chunkAt(t.offset).End)
	}
	return err
}

// get asks for a range of the blob, or for all of it. A status 416 means that the registry's blob
// is shorter than its descriptor states, or that the registry does not support ranges; a request
// without a range shows which.
func (t *transfer) get(ctx context.Context, host *registry.Endpoint, want registry.Range, connection int) (
	*http.Response, error,
) {
	asked := time.Now()
	resp, err := t.repo.Get(ctx, host, "blobs", t.desc.Digest.String(), "*/*", want, connection)
	if err == nil && t.link != nil {
		t.link.addLatency(time.Since(asked))
	}
	switch {
	case errdefs.IsOutOfRange(err):
		err = fmt.Errorf("%w: %w: %v", errdefs.ErrDataLoss, errRange, err)
	case want != registry.Range{} && refusesRange(err):
		err = fmt.Errorf("%w: %w", err, errRange)
	}
	if err != nil {
		return nil, sourceError{err}
	}
	if err := t.decode(resp); err != nil {
		resp.Body.Close()
		return nil, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return resp, nil
}

// decode replaces the body of an answer that has content encodings by the bytes of the blob.
func (t *transfer) decode(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		// A range of an encoded blob is useless. A range with the requested length is one of the
		// blob itself.
		if all := encoding.Of(resp.Header); len(all) > 0 && resp.ContentLength < 0 {
			return fmt.Errorf("a range with content encoding %.50q: %w: %w", all[0], errRange, errdefs.ErrDataLoss)
		}
		return nil
	}
	encoded, err := encoding.Undo(resp, t.desc, t.otherEncoding)
	if encoded {
		t.encoded.Store(true)
	}
	return err
}

// stream writes the body of resp, the answer to a request for want, which begins at the offset or
// before. If the rest of the blob is to be divided, it stops, reports that, and leaves the body
// open.
func (t *transfer) stream(ctx context.Context, host *registry.Endpoint, resp *http.Response,
	want registry.Range,
) (divide bool, err error) {
	defer func() {
		if !divide {
			resp.Body.Close()
		}
	}()
	if err := t.position(resp, want); err != nil {
		return false, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	ranges := resp.StatusCode == http.StatusPartialContent ||
		strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes")
	wait := newNetworkWait()
	buf := make([]byte, 128<<10)
	for {
		start := time.Now()
		n, err := resp.Body.Read(buf)
		waited := time.Since(start)
		if t.offset+int64(n) > t.desc.Size {
			return false, t.tooLong(host)
		}
		if n > 0 {
			if err := t.write(buf[:n]); err != nil {
				return false, err
			}
			t.offset += int64(n)
		}
		switch {
		case err == nil && t.offset == t.desc.Size: // the body may have more bytes, or never end
			if registry.ReadEnd(resp.Body) > 0 {
				return false, t.tooLong(host)
			}
			return false, nil
		case err == nil:
			rate, slow := wait.read(n, waited)
			if slow && ranges && t.divisible() && t.link.shouldDivide(rate) {
				t.trial = newTrial(rate, t.link.ranges)
				return true, nil
			}
		case t.offset == t.desc.Size: // complete, however the connection ended
			return false, nil
		default:
			return false, broken(ctx, host, t.offset, t.desc.Size, err)
		}
	}
}

// tooLong is the error for a body with more bytes than the blob has.
func (t *transfer) tooLong(host *registry.Endpoint) error {
	return sourceError{fmt.Errorf("registry %s: the body has more than the %d bytes of the blob: %w",
		host.Host, t.desc.Size, errdefs.ErrDataLoss)}
}

// broken is the error for a body that ended with err after at of size bytes.
func broken(ctx context.Context, host *registry.Endpoint, at, size int64, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("registry %s: %w", host.Host, ctx.Err())
	case errdefs.IsDataLoss(err):
		return sourceError{fmt.Errorf("registry %s: after %d of %d bytes: %w", host.Host, at, size, err)}
	case errors.Is(err, io.EOF):
		ended := fmt.Errorf("registry %s: the body ended after %d of %d bytes: %w",
			host.Host, at, size, errdefs.ErrUnavailable)
		return sourceError{cause.Mark(ended, cause.Broken, host.Host)}
	}
	broke := fmt.Errorf("registry %s: the body broke after %d of %d bytes: %v: %w",
		host.Host, at, size, err, errdefs.ErrUnavailable)
	return sourceError{httperror.MarkNetwork(broke, err, host.Host)}
}

// position makes the body continue at the offset. A 206 must state that it begins there; of a 200,
// the first bytes are skipped.
func (t *transfer) position(resp *http.Response, want registry.Range) error {
	if resp.StatusCode == http.StatusPartialContent {
		end, err := partial(resp, want, t.desc.Size)
		if err != nil || want != (registry.Range{}) {
			return err
		}
		if end != t.desc.Size { // a range that has the whole blob is as good as a 200
			return fmt.Errorf("the answer is a range of %d of %d bytes, which was not requested: %w",
				end, t.desc.Size, errdefs.ErrDataLoss)
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != t.desc.Size {
		return fmt.Errorf("the body has %d bytes, the blob has %d: %w",
			resp.ContentLength, t.desc.Size, errdefs.ErrDataLoss)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, t.offset); errdefs.IsDataLoss(err) {
		return fmt.Errorf("before byte %d: %w", t.offset, err)
	} else if err != nil {
		return fmt.Errorf("the body broke before byte %d: %v: %w", t.offset, err, errdefs.ErrUnavailable)
	}
	return nil
}

// partial checks that a 206 begins where want begins, for an object of size bytes, and returns the
// offset behind its last byte. The answer may be shorter than want.
func partial(resp *http.Response, want registry.Range, size int64) (end int64, err error) {
	fail := func() (int64, error) {
		return 0, fmt.Errorf("the answer to %q of %d bytes has Content-Range %.100q and Content-Type %.50q: %w: %w",
			want.Header(), size, strings.TrimSpace(resp.Header.Get("Content-Range")),
			resp.Header.Get("Content-Type"), errRange, errdefs.ErrDataLoss)
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasPrefix(t, "multipart/") {
		return fail()
	}
	var start, last int64
	var total string
	if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%s", &start, &last, &total); n != 3 {
		return fail()
	}
	limit := size
	if want.End > 0 {
		limit = want.End
	}
	if start != want.Start || last < start || last >= limit || total != "*" && total != fmt.Sprint(size) {
		return fail()
	}
	if resp.ContentLength >= 0 && resp.ContentLength != last+1-start {
		return fail()
	}
	return last + 1, nil
}
