package processor_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/processor"
)

// shell returns a processor that runs a script.
func shell(id, accepts, returns, script string, args ...string) processor.Processor {
	return processor.Processor{
		ID: id, Accepts: []string{accepts}, Returns: returns, Path: "/bin/sh", Env: []string{"OWN=env"},
		Args: append([]string{"-c", script, id}, args...),
	}
}

// blob is a blob that may end with an error and counts the bytes that were read.
type blob struct {
	io.Reader
	err    error
	read   atomic.Int64
	closed atomic.Bool
}

func newBlob(data []byte, err error) *blob { return &blob{Reader: bytes.NewReader(data), err: err} }

func (b *blob) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read.Add(int64(n))
	if err == io.EOF && b.err != nil {
		err = b.err
	}
	return n, err
}

func (b *blob) Close() error {
	b.closed.Store(true)
	return nil
}

var errBlob = fmt.Errorf("other bytes: %w", errdefs.ErrDataLoss)

func TestChain(t *testing.T) {
	all := []processor.Processor{
		shell("a", "outer", "inner", ""), shell("b", "inner", "tar", ""), shell("c", "loop", "loop", ""),
		shell("d", "dead", "end", ""), {ID: "e", Accepts: []string{"x", "many"}, Returns: "tar"},
	}
	for mediaType, want := range map[string]string{
		"outer": "ab", "inner": "b", "many": "e", "loop": "", "dead": "", "unknown": "", "tar": "",
	} {
		got := ""
		for _, p := range processor.Chain(all, mediaType, func(m string) bool { return m == "tar" }) {
			got += p.ID
		}
		if got != want {
			t.Errorf("%s: %q, want %q", mediaType, got, want)
		}
	}
}

// TestStream: the output and the errors of programs.
func TestStream(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, row := range []struct {
		testName string
		chain    []processor.Processor
		blob     []byte
		blobErr  error
		want     string // of the output, or of the error
		is       func(error) bool
	}{
		{"one", []processor.Processor{shell("a", "x", "tar", "tr a-z A-Z")}, []byte("abc"), nil, "ABC", nil},
		{
			"two, one behind the other",
			[]processor.Processor{shell("a", "x", "y", "tr a-z A-Z"), shell("b", "y", "tar", "tr B _")},
			[]byte("abc"), nil, "A_C", nil,
		},
		{
			"media types and environment",
			[]processor.Processor{
				shell("a", "x", "y", `echo "$STREAM_PROCESSOR_MEDIATYPE $OWN ${NOTIFY_SOCKET-none} $TANK_TEST"`),
				shell("b", "y", "tar", `cat; echo "$STREAM_PROCESSOR_MEDIATYPE"`),
			}, nil, nil, "x env none inherited\ny\n", nil,
		},
		{"payload", []processor.Processor{shell("keyed", "x", "tar", "cat <&3; cat")}, []byte(" blob"), nil,
			"secret blob",
			nil},
		{"no payload of its own", []processor.Processor{shell("a", "x", "tar", "cat <&3 2>/dev/null || echo "+
			"none")}, nil, nil,
			"none\n", nil},
		{"a payload that is not read", []processor.Processor{shell("keyed", "x", "tar", "cat")}, []byte("b"),
			nil, "b", nil},
		{"large", []processor.Processor{shell("a", "x", "tar", "cat")}, large, nil, string(large), nil},
		{"an end before the blob's", []processor.Processor{shell("a", "x", "tar", "head -c 3")}, large, nil,
			"012", nil},
		{"an end before the blob's error", []processor.Processor{shell("a", "x", "tar", "head -c 3")}, large, errBlob,
			"other bytes", errdefs.IsDataLoss},
		{"the blob's error", []processor.Processor{shell("a", "x", "tar", "cat; exit 1")}, []byte("abc"), errBlob,
			"other bytes", errdefs.IsDataLoss},
		{"failure", []processor.Processor{shell("a", "x", "tar", "echo out; echo no key >&2; exit 1")}, large, nil,
			"stream processor a: no key: ", errdefs.IsFailedPrecondition},
		{"failure without a word", []processor.Processor{shell("a", "x", "tar", "exit 7")}, nil, nil, "exit status 7",
			errdefs.IsFailedPrecondition},
		{
			"failure of the first of two",
			[]processor.Processor{shell("a", "x", "y", "echo no key >&2; exit 1"), shell("b", "y", "tar",
				"cat")}, large, nil,
			"stream processor a: no key", errdefs.IsFailedPrecondition,
		},
		{"a lot on stderr", []processor.Processor{shell("a", "x", "tar",
			`head -c 9000000 /dev/zero >&2; echo "the end" >&2; exit 1`)}, nil, nil, "the end",
			errdefs.IsFailedPrecondition},
		{"text for a terminal", []processor.Processor{shell("a", "x", "tar", `printf 'a\033[2Jb' >&2; exit 1`)},
			nil, nil,
			`a\x1b[2Jb`, errdefs.IsFailedPrecondition},
		{"no program", []processor.Processor{{ID: "a", Path: "/nonexistent/decoder"}}, large, nil,
			"/nonexistent/decoder",
			errdefs.IsFailedPrecondition},
		{
			"no second program", []processor.Processor{shell("a", "x", "y", "cat"),
				{ID: "b", Path: "/nonexistent/decoder"}}, large, nil,
			"stream processor b", errdefs.IsFailedPrecondition,
		},
	} {
		t.Run(row.testName, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", "/run/x")
			t.Setenv("TANK_TEST", "inherited")
			b := newBlob(row.blob, row.blobErr)
			got, err := run(row.chain, b, &processor.Options{Payloads: map[string][]byte{"keyed": []byte("secret")}})
			if row.is != nil {
				if err == nil || !row.is(err) || !strings.Contains(err.Error(), row.want) || len(err.Error()) > 2<<10 {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			} else if err != nil || got != row.want {
				t.Errorf("got %.100q, %v", got, err)
			} else if n := b.read.Load(); n != int64(len(row.blob)) {
				t.Errorf("%d of %d bytes of the blob were read", n, len(row.blob))
			}
			if !b.closed.Load() {
				t.Error("the blob is open")
			}
		})
	}
}

func run(chain []processor.Processor, b io.ReadCloser, opts *processor.Options) (string, error) {
	s, err := processor.Start(chain, "x", b, opts)
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(s)
	if err == nil {
		_, err = s.Read(make([]byte, 1))
		if err == io.EOF {
			err = nil
		}
	}
	return string(out), errors.Join(err, s.Close(), s.Close())
}

// leaves is an environment variable that TestLeavesGroup sets for a program.
const leaves = "TANK_TEST_LEAVES_GROUP"

// TestLeavesGroup: Close kills a program that has joined another process group.
func TestLeavesGroup(t *testing.T) {
	if os.Getenv(leaves) != "" {
		group, err := unix.Getpgid(os.Getppid())
		fmt.Println("left", errors.Join(err, unix.Setpgid(0, group)))
		time.Sleep(time.Minute)
		return
	}
	t.Parallel()
	p := processor.Processor{
		ID: "a", Accepts: []string{"x"}, Returns: "tar", Path: os.Args[0],
		Args: []string{"-test.run=^TestLeavesGroup$"},
		Env:  []string{leaves + "=1"},
	}
	s, err := processor.Start([]processor.Processor{p}, "x", newBlob(nil, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("left <nil>"))
	if _, err := io.ReadFull(s, said); err != nil || string(said) != "left <nil>" {
		t.Errorf("%q, %v", said, err)
	}
	start := time.Now()
	if err := s.Close(); err != nil || time.Since(start) > 20*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(start))
	}
}

// TestEnds: no program outlives its stream: one whose stream is closed, one that stalls, and one that leaves another
// program running.
func TestEnds(t *testing.T) {
	never := func() *blob { r, _, _ := os.Pipe(); return &blob{Reader: r} }
	for _, row := range []struct {
		testName string
		script   string
		stall    time.Duration
		close    bool // while Read waits
		want     string
	}{
		{"closed", "sleep 100", 0, true, ""},
		{"closed, with a child", "sleep 100 & sleep 100", 0, true, ""},
		{"stalled", "sleep 100", 200 * time.Millisecond, false, "nothing came or went"},
		{"stalled after its output", "echo x; exec >&-; sleep 100", 200 * time.Millisecond, false,
			"nothing came or went"},
		{"a child is left behind", "sleep 100 & exit 0", 10 * time.Second, false, ""},
	} {
		t.Run(row.testName, func(t *testing.T) {
			t.Parallel()
			pids := filepath.Join(t.TempDir(), "pid")
			b := never()
			if row.want == "" && !row.close {
				b = newBlob(nil, nil)
			}
			s, err := processor.Start([]processor.Processor{shell("a", "x", "tar", "echo $$ >"+pids+"; "+
				""+row.script)}, "x",
				closing{b},
				&processor.Options{Stall: row.stall})
			if err != nil {
				t.Fatal(err)
			}
			group := awaitPID(t, pids)
			if row.close {
				time.AfterFunc(50*time.Millisecond, func() { s.Close() })
			}
			start := time.Now()
			_, err = io.ReadAll(s)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			switch {
			case row.close && err == nil, row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("Read: %v", err)
			case row.want == "" && !row.close && err != nil:
				t.Errorf("Read: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			for deadline := time.Now().Add(5 * time.Second); unix.Kill(-group,
				0) == nil; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("a program still runs")
				}
			}
		})
	}
}

// closing closes the file of a blob, which ends a Read that waits.
type closing struct{ *blob }

func (c closing) Close() error {
	if f, ok := c.Reader.(*os.File); ok {
		f.Close()
	}
	return c.blob.Close()
}

func awaitPID(t *testing.T, file string) int {
	t.Helper()
	for range 500 {
		b, err := os.ReadFile(file)
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && perr == nil {
			return pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program did not start")
	return 0
}

// TestSlowInput: a program that reads for longer than Stall is not killed.
func TestSlowInput(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	go func() {
		for range 8 {
			time.Sleep(300 * time.Millisecond)
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
		}
		w.Close()
	}()
	got, err := run([]processor.Processor{shell("a", "x", "tar", "sort")}, r,
		&processor.Options{Stall: 1200 * time.Millisecond})
	if err != nil || !slices.Equal([]byte(strings.TrimSpace(got)), []byte("xxxxxxxx")) {
		t.Errorf("got %q, %v", got, err)
	}
}
