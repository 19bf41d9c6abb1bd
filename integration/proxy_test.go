package integration

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestProxy: the proxy holds, slows, logs and stops as the other tests assume.
func TestProxy(t *testing.T) {
	blob := bytes.Repeat([]byte("0123456789"), 10000)
	d := digest.FromBytes(blob)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	defer backend.Close()
	p := NewProxy(t, strings.TrimPrefix(backend.URL, "http://"))
	url := "http://" + p.Ref("v2/x/blobs/"+d.String())
	get := func(ranges string) (*http.Response, error) {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		return http.DefaultClient.Do(req)
	}
	read := func(ranges string) []byte {
		t.Helper()
		resp, err := get(ranges)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	for _, ranges := range []string{"", "bytes=20000-"} {
		p.Hold(d, 50000)
		got := make(chan []byte)
		go func() { got <- read(ranges) }()
		Eventually(t, 5*time.Second, "the held place is reached", func() bool { return p.Reached(d) })
		if sent := p.Sent(); sent >= int64(len(blob)) {
			t.Errorf("the proxy sent %d bytes of a held blob", sent)
		}
		select {
		case <-got:
			t.Error("a held body arrived completely")
		case <-time.After(50 * time.Millisecond):
		}
		p.Release(d)
		want := blob
		if ranges != "" {
			want = blob[20000:]
		}
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("received %d bytes, not %d", len(b), len(want))
		}
		p.ResetLog()
	}

	p.SetRate(int64(len(blob)) * 4)
	start := time.Now()
	read("")
	if took := time.Since(start); took < 200*time.Millisecond || took > 2*time.Second {
		t.Errorf("a body that should take a quarter of a second took %v", took)
	}
	p.SetRate(0)
	if gets := p.BlobGets(); len(gets) != 1 || gets[0].Bytes != int64(len(blob)) || gets[0].Blob() != d ||
		gets[0].Status != 200 {
		t.Errorf("log: %+v", gets)
	}

	p.Stop()
	if _, err := get(""); err == nil {
		t.Error("a stopped proxy answers")
	}
	p.Restart()
	read("")
}
