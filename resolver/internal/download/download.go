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

// download brings the bytes of one blob to write, in order and each once.
type download struct {
	repo          *registry.Repository
	desc          ocispec.Descriptor
	write         func([]byte) error // its errors are the store's, and end the download
	buffers       *buffers           // for ranges; nil: one stream
	link          *linkState         // whether there are to be ranges; not nil if buffers is not
	slot          *slot              // counts the bytes written; nil: they are not counted
	connection    int                // of the stream, and of the first range
	deadline      time.Time          // when a document has to be here; zero: no deadline
	offset        int64              // how many bytes were written
	host          int                // the host that is asked now; those before it are not asked
	noRanges      bool               // ranges are not to be trusted
	usedRange     bool               // the last attempt asked for a range
	encoded       atomic.Bool        // an answer had a content encoding, which may be the blob's own
	otherEncoding bool               // the choice that was made before about an encoding was wrong
	trial         *trial             // of whether ranges pay; nil: that is known
	stopRanges    atomic.Bool        // they do not
}

// sourceError came from a registry; other errors are the store's, and another host or attempt can't help against them.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

func isSource(err error) bool { return errors.As(err, new(sourceError)) }

// errRange says that a host does not do with ranges what it should.
var errRange = errors.New("bad answer to a range")

// progress is how many new bytes make an attempt count as one that went well.
const minProgress = 64 << 10

// run writes what is lacking, from the first host that gives it. As long as attempts bring new bytes it goes on.
func (d *download) run(ctx context.Context) error {
	if d.offset > d.desc.Size {
		return fmt.Errorf("ingest has %d of %d bytes: %w", d.offset, d.desc.Size, errdefs.ErrDataLoss)
	}
	if d.buffers != nil && d.desc.Size > minChunks*d.buffers.size {
		lane, leave := d.link.begin()
		defer leave()
		d.connection = lane
	}
	var first error
	for ; d.offset < d.desc.Size && d.host < len(d.repo.Hosts); d.host++ {
		host := d.repo.Hosts[d.host]
		if !host.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		last := d.host == len(d.repo.Hosts)-1
		bounded, cancel := retry.Within(ctx, d.deadline, last)
		err, final := d.fromHost(bounded, host, last)
		if err != nil && retry.Expired(ctx, bounded) {
			err, final = retry.TimeoutError("registry "+host.Host, d.repo.DocumentTimeout()), false
		}
		cancel()
		if err == nil || final {
			return err
		}
		if first == nil || errdefs.IsNotFound(first) {
			first = err
		}
	}
	if d.offset < d.desc.Size && first == nil {
		first = d.repo.NoHostError()
	}
	d.host = min(d.host, len(d.repo.Hosts)-1)
	return first
}

// fromHost tries one host until it has given everything or nothing new for as many attempts as there are. final says that no other host is
// to be asked.
func (d *download) fromHost(ctx context.Context, host *registry.Endpoint, last bool) (err error, final bool) {
	for attempt := 1; ; attempt++ {
		before := d.offset
		err := d.attempt(ctx, host)
		switch {
		case err == nil:
			return nil, true
		case ctx.Err() != nil || !isSource(err):
			return err, true
		case errors.Is(err, errRange) && !d.noRanges:
			d.noRanges = true
			continue // at once, for it is another request
		case errdefs.IsDataLoss(err):
			return err, last || d.offset > before
		case !retry.IsTemporary(err):
			return err, false
		}
		if d.offset-before >= minProgress {
			attempt = 1
		}
		switch {
		case attempt < d.repo.Retry().Attempts && (last || d.offset > before):
		case last && d.usedRange && mayRefuseRange(err):
			d.noRanges = true // one more attempt
		default:
			return err, false
		}
		if err := d.repo.Retry().Wait(ctx, attempt, err); err != nil {
			return err, true
		}
	}
}

// attempt goes on until the end or an error, in one stream or in several as pace finds best.
func (d *download) attempt(ctx context.Context, host *registry.Endpoint) error {
	for {
		var err error
		if d.divisible() && d.link.startDivided() {
			err = d.ranges(ctx, host)
		} else {
			err = d.single(ctx, host)
		}
		if err != nil || d.offset == d.desc.Size {
			return err
		}
	}
}

// divisible says whether what is lacking is worth ranges.
func (d *download) divisible() bool {
	return d.buffers != nil && !d.noRanges && d.desc.Size-d.offset > minChunks*d.buffers.size
}

// single asks for all that is lacking. If its answer turns out to be slower than the way may be, it becomes the first of several ranges.
func (d *download) single(ctx context.Context, host *registry.Endpoint) error {
	want := registry.Range{}
	if !d.noRanges {
		want.Start = d.offset
	}
	d.usedRange = want.Start > 0
	resp, err := d.get(ctx, host, want, d.connection)
	if err != nil {
		return err
	}
	divide, err := d.stream(ctx, host, resp, want)
	if divide {
		d.usedRange = true
		return d.parallel(ctx, host, resp, d.span(d.offset).End)
	}
	return err
}

// get asks for a part of the blob. 416 means that the registry has fewer bytes than the manifest states, or does not
// support ranges. A request for everything shows which.
func (d *download) get(ctx context.Context, host *registry.Endpoint, want registry.Range, lane int) (*http.Response, error) {
	asked := time.Now()
	resp, err := d.repo.Get(ctx, host, "blobs", d.desc.Digest.String(), "*/*", want, lane)
	if err == nil && d.link != nil {
		d.link.addLatency(time.Since(asked))
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
	if err := d.undo(resp); err != nil {
		resp.Body.Close()
		return nil, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	return resp, nil
}

// undo makes the body of an answer the bytes of the blob, if the answer has encodings.
func (d *download) undo(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		// A range of an encoded blob is of no use. One that has the length of what was asked for is of the blob itself.
		if all := encoding.Of(resp.Header); len(all) > 0 && resp.ContentLength < 0 {
			return fmt.Errorf("a range with content encoding %.50q: %w: %w", all[0], errRange, errdefs.ErrDataLoss)
		}
		return nil
	}
	encoded, err := encoding.Undo(resp, d.desc, d.otherEncoding)
	if encoded {
		d.encoded.Store(true)
	}
	return err
}

// stream writes the body of an answer to want, whose start is at most offset, as it comes. It stops, and leaves the body open, when the rest is to
// be divided.
func (d *download) stream(ctx context.Context, host *registry.Endpoint, resp *http.Response,
	want registry.Range,
) (divide bool, err error) {
	defer func() {
		if !divide {
			resp.Body.Close()
		}
	}()
	if err := d.position(resp, want); err != nil {
		return false, sourceError{fmt.Errorf("registry %s: %w", host.Host, err)}
	}
	ranges := resp.StatusCode == http.StatusPartialContent || strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes")
	starved := newNetworkWait()
	buf := make([]byte, 128<<10)
	for {
		start := time.Now()
		n, err := resp.Body.Read(buf)
		waited := time.Since(start)
		if d.offset+int64(n) > d.desc.Size {
			return false, sourceError{fmt.Errorf("registry %s: more than the announced %d bytes: %w", host.Host, d.desc.Size, errdefs.ErrDataLoss)}
		}
		if n > 0 {
			if err := d.write(buf[:n]); err != nil {
				return false, err
			}
			d.offset += int64(n)
		}
		if err == nil && d.offset == d.desc.Size { // the body may have more bytes, or never end
			return false, d.end(host, resp.Body)
		}
		if err == nil {
			if rate, ok := starved.read(n, waited); ok && ranges && d.divisible() && d.link.shouldDivide(rate) {
				d.trial = newTrial(rate, d.link.ranges)
				return true, nil
			}
			continue
		}
		if d.offset == d.desc.Size { // complete, however the connection ended
			return false, nil
		}
		return false, broken(ctx, host, d.offset, d.desc.Size, err)
	}
}

// end reads the end of a body that has brought all bytes.
func (d *download) end(host *registry.Endpoint, body io.ReadCloser) error {
	if n := registry.ReadEnd(body); n > 0 {
		return sourceError{fmt.Errorf("registry %s: more than the announced %d bytes: %w",
			host.Host, d.desc.Size, errdefs.ErrDataLoss)}
	}
	return nil
}

// broken is the error of a body that ended before its time.
func broken(ctx context.Context, host *registry.Endpoint, at, size int64, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("registry %s: %w", host.Host, ctx.Err())
	case errdefs.IsDataLoss(err):
		return sourceError{fmt.Errorf("registry %s: at %d of %d bytes: %w", host.Host, at, size, err)}
	case errors.Is(err, io.EOF):
		ended := fmt.Errorf("registry %s: the body ended at %d of %d bytes: %w", host.Host, at, size, errdefs.ErrUnavailable)
		return sourceError{cause.Mark(ended, cause.Broken, host.Host)}
	}
	broke := fmt.Errorf("registry %s: the body broke at %d of %d bytes: %v: %w", host.Host, at, size, err,
		errdefs.ErrUnavailable)
	return sourceError{httperror.MarkNetwork(broke, err, host.Host)}
}

// position makes the body begin at offset: a 206 has to say that it does, and of a 200 the beginning is skipped.
func (d *download) position(resp *http.Response, want registry.Range) error {
	if resp.StatusCode == http.StatusPartialContent {
		end, err := partial(resp, want, d.desc.Size)
		if err != nil || want != (registry.Range{}) {
			return err
		}
		if end != d.desc.Size { // all of it, though as a range, is as good as a 200
			return fmt.Errorf("%d of %d bytes as a range that was not asked for: %w", end, d.desc.Size, errdefs.ErrDataLoss)
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != d.desc.Size {
		return fmt.Errorf("%d bytes where %d were announced: %w", resp.ContentLength, d.desc.Size, errdefs.ErrDataLoss)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, d.offset); errdefs.IsDataLoss(err) {
		return fmt.Errorf("before byte %d: %w", d.offset, err)
	} else if err != nil {
		return fmt.Errorf("the body broke before byte %d: %v: %w", d.offset, err, errdefs.ErrUnavailable)
	}
	return nil
}

// partial checks that a 206 is a beginning of what was asked for, of an object of that size, and returns where it ends.
func partial(resp *http.Response, want registry.Range, size int64) (end int64, err error) {
	fail := func() (int64, error) {
		return 0, fmt.Errorf("asked for %q of %d bytes, got %.100q as %.50q: %w: %w", want.Header(), size,
			strings.TrimSpace(resp.Header.Get("Content-Range")), resp.Header.Get("Content-Type"), errRange, errdefs.ErrDataLoss)
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
	// A server may give less than was asked for, but not something else.
	if start != want.Start || last < start || last >= limit || total != "*" && total != fmt.Sprint(size) {
		return fail()
	}
	if resp.ContentLength >= 0 && resp.ContentLength != last+1-start {
		return fail()
	}
	return last + 1, nil
}
