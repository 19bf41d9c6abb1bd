package panics

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// capture redirects the log to a buffer until the test ends.
func capture(t *testing.T) *bytes.Buffer {
	t.Helper()
	var text bytes.Buffer
	before := log.L.Logger.Out
	log.L.Logger.SetOutput(&text)
	t.Cleanup(func() { log.L.Logger.SetOutput(before) })
	return &text
}

// TestRecover: a panic becomes an internal error that names the operation, whatever the panic's
// value is, and the stack is logged.
func TestRecover(t *testing.T) {
	text := capture(t)
	err := func() (err error) {
		defer Recover("blob x", &err)
		panic(io.EOF)
	}()
	if !errdefs.IsInternal(err) || errors.Is(err, io.EOF) || !strings.HasPrefix(err.Error(), "blob x: panic: EOF") {
		t.Errorf("error %v", err)
	}
	if s := text.String(); !strings.Contains(s, "blob x: panic: EOF") || !strings.Contains(s, "TestRecover") {
		t.Errorf("log %q", s)
	}
}

// TestCall: without a panic, the error is the function's own and nothing is logged.
func TestCall(t *testing.T) {
	text := capture(t)
	if err := Call("x", func() error { return io.EOF }); err != io.EOF {
		t.Errorf("error %v", err)
	}
	if err := Call("x", func() error { return nil }); err != nil {
		t.Errorf("error %v", err)
	}
	if text.Len() > 0 {
		t.Errorf("log %q", text)
	}
	if err := Call("x", func() error { panic("y") }); !errdefs.IsInternal(err) {
		t.Errorf("error %v", err)
	}
}
