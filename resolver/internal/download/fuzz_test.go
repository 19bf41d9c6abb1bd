package download

import (
	"net/http"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// FuzzPartial: a 206 that partial accepts begins where the request began, and ends inside the object.
func FuzzPartial(f *testing.F) {
	f.Add("bytes 3-9/10", "application/octet-stream", int64(3), int64(9), int64(10))
	f.Add("bytes 0-0/*", "", int64(0), int64(0), int64(1))
	f.Add("bytes 0-9223372036854775807/9223372036854775807", "", int64(0), int64(5), int64(6))
	f.Add("bytes -1-2/3", "multipart/byteranges; boundary=x", int64(0), int64(2), int64(3))
	f.Fuzz(func(t *testing.T, contentRange, contentType string, start, end, size int64) {
		if start < 0 || end < start || size <= end {
			return
		}
		resp := &http.Response{
			StatusCode: http.StatusPartialContent,
			Header:     http.Header{"Content-Range": {contentRange}, "Content-Type": {contentType}},
		}
		got, err := partial(resp, registry.Range{Start: start, End: end}, size)
		switch {
		case err != nil && !errdefs.IsDataLoss(err):
			t.Errorf("%q: %v", contentRange, err)
		case err == nil && (got <= start || got > size):
			t.Errorf("%q to %d-%d of %d: ends at %d", contentRange, start, end, size, got)
		}
	})
}
