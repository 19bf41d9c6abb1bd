package registrytest

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Fault sees a request and reports whether it has answered it. It may cut the connection with
// panic(http.ErrAbortHandler).
type Fault func(http.ResponseWriter, *http.Request) bool

// On limits a fault to requests whose path contains part.
func On(part string, f Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, part) && f(w, r)
	}
}

// Times lets a fault answer n times. It passes later requests on.
func Times(n int32, f Fault) Fault {
	var left atomic.Int32
	left.Store(n)
	return func(w http.ResponseWriter, r *http.Request) bool { return left.Add(-1) >= 0 && f(w, r) }
}

// First answers with the first of several faults that answers.
func First(faults ...Fault) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		for _, f := range faults {
			if f(w, r) {
				return true
			}
		}
		return false
	}
}

// Answer answers with a status, with headers as pairs of name and value, and with a body of known
// length.
func Answer(status int, body []byte, headers ...string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Add(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(status)
		_, _ = w.Write(body)
		return true
	}
}

// Redirect redirects to the same path at base, a scheme and a host.
func Redirect(status int, base string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Location", base+r.URL.Path)
		w.WriteHeader(status)
		return true
	}
}

// span returns the range of size bytes that a request asks for.
func span(r *http.Request, size int) (start, end int, ranged bool) {
	s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if !ok {
		return 0, size, false
	}
	from, to, _ := strings.Cut(s, "-")
	start, _ = strconv.Atoi(from)
	end = size
	if n, err := strconv.Atoi(to); err == nil {
		end = min(n+1, size)
	}
	return start, end, true
}

// head writes the correct status and headers for a range of data, and returns the bytes of the
// body.
func head(w http.ResponseWriter, r *http.Request, data []byte) []byte {
	start, end, ranged := span(r, len(data))
	w.Header().Set("Content-Length", strconv.Itoa(end-start))
	if ranged {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(data)))
		w.WriteHeader(http.StatusPartialContent)
	}
	return data[start:end]
}

// Cut sends at most n of the requested bytes of data and cuts the connection.
func Cut(data []byte, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		body := head(w, r, data)
		_, _ = w.Write(body[:min(n, len(body))])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// Stall sends n of the requested bytes of data, and then nothing until the client disconnects.
func Stall(data []byte, n int) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		body := head(w, r, data)
		_, _ = w.Write(body[:min(n, len(body))])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
}

// Drip sends the requested bytes of data one at a time, with a pause after each.
func Drip(data []byte, pause time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		for _, b := range head(w, r, data) {
			if _, err := w.Write([]byte{b}); err != nil {
				break
			}
			w.(http.Flusher).Flush()
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				return true
			}
		}
		return true
	}
}

// NoRanges answers every request with all of data.
func NoRanges(data []byte) Fault { return Answer(http.StatusOK, data) }

// ContentRange answers a request for a range with the requested bytes, and with the Content-Range
// that form returns for the offsets of the first and the last byte and for the size.
func ContentRange(data []byte, form func(start, last, size int) string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		start, end, ranged := span(r, len(data))
		if !ranged {
			return false
		}
		w.Header().Set("Content-Range", form(start, end-1, len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[start:end])
		return true
	}
}

// Multipart answers a request for a range with multipart/byteranges.
func Multipart(data []byte) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		start, end, ranged := span(r, len(data))
		if !ranged {
			return false
		}
		var b bytes.Buffer
		m := multipart.NewWriter(&b)
		contentRange := fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(data))
		part, _ := m.CreatePart(textproto.MIMEHeader{"Content-Range": {contentRange}})
		_, _ = part.Write(data[start:end])
		m.Close()
		w.Header().Set("Content-Type", "multipart/byteranges; boundary="+m.Boundary())
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b.Bytes())
		return true
	}
}

// Unsatisfiable answers a request for a range with 416.
func Unsatisfiable(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Range") == "" {
		return false
	}
	w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	return true
}
