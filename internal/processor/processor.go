// Package processor runs stream processors: programs that turn a blob of a media type that Tank does not
// read, such as that of an encrypted layer, into the bytes of another type. containerd's config names them
// ([stream_processors]).
//
// It owns nothing on disk.
//
// Its invariant: no program outlives the stream that it was started for, and none is believed. A stream ends
// in io.EOF only after the programs have succeeded and the whole blob was read, whose end is where its digest
// is verified.
//
// The surprising rule: a program is ended with its process group, so programs that it starts end as well.
package processor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Processor is one program, with the names that containerd's config gives to its properties.
type Processor struct {
	// ID is also the name under which a client sends a payload for it.
	ID      string   `toml:"-"`
	Accepts []string `toml:"accepts"`
	Returns string   `toml:"returns"`
	// Path is a path, or a name that is looked for in $PATH.
	Path string   `toml:"path"`
	Args []string `toml:"args"`
	Env  []string `toml:"env"`
}

// Find returns an error if the program can't be found or is not executable.
func (p Processor) Find() error {
	_, err := exec.LookPath(p.Path)
	return err
}

// maxChain is how many programs may work one behind the other.
const maxChain = 8

// stall is how long a program may neither take nor give bytes while its output is waited for.
const stall = 5 * time.Minute

// Chain returns the processors that turn a blob of the media type into one that done accepts, in their order.
// nil: none do, or none is needed.
func Chain(all []Processor, mediaType string, done func(mediaType string) bool) (chain []Processor) {
	for !done(mediaType) {
		i := slices.IndexFunc(all, func(p Processor) bool { return slices.Contains(p.Accepts, mediaType) })
		if i < 0 || len(chain) == maxChain {
			return nil
		}
		chain = append(chain, all[i])
		mediaType = all[i].Returns
	}
	return chain
}

// Options of Start.
type Options struct {
	// Payloads are sent to the processors with these IDs, on descriptor 3, as by containerd. nil: none.
	Payloads map[string][]byte
	// Stall is how long a program may neither take nor give bytes while its output is waited for. 0: 5 minutes.
	Stall time.Duration
}

// Stream is the output of the last processor of a chain. Errors of a program are of class ErrFailedPrecondition and
// have the end of what it wrote to stderr. Close ends all programs and closes the blob. It may come twice, and ends a
// Read that waits.
type Stream struct {
	blob  io.ReadCloser
	out   *os.File
	feed  *feed
	procs []*process
	stall time.Duration

	closing sync.Once
	ended   bool // Read returned io.EOF
}

// Start starts the processors of a chain, which is not empty, on a blob of the media type. It closes the blob if it
// fails.
func Start(chain []Processor, mediaType string, blob io.ReadCloser, opts *Options) (*Stream, error) {
	s := &Stream{blob: blob, stall: stall}
	var payloads map[string][]byte
	if opts != nil {
		payloads = opts.Payloads
		if opts.Stall != 0 {
			s.stall = opts.Stall
		}
	}
	in, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	s.feed = startFeed(w, blob)
	for _, p := range chain {
		proc, out, err := start(p, mediaType, in, payloads[p.ID])
		in.Close() // the program has its own
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("stream processor %s: %w: %w", p.ID, err, errdefs.ErrFailedPrecondition)
		}
		s.procs = append(s.procs, proc)
		s.out, in, mediaType = out, out, p.Returns
	}
	return s, nil
}

// Read returns the bytes that the last processor writes.
func (s *Stream) Read(p []byte) (int, error) {
	for fed := s.feed.count.Load(); !s.ended; {
		if err := s.out.SetReadDeadline(time.Now().Add(s.stall)); err != nil {
			return 0, err
		}
		n, err := s.out.Read(p)
		switch now := s.feed.count.Load(); {
		case n > 0 || err == nil:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && now != fed:
			fed = now // it takes bytes
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, s.stalled(len(s.procs) - 1)
		case errors.Is(err, io.EOF):
			if err := s.finish(); err != nil {
				return 0, err
			}
			s.ended = true
		default:
			return 0, err
		}
	}
	return 0, io.EOF
}

// finish waits for the end of the programs and then of the blob. A program may end before it has read all of
// the blob.
func (s *Stream) finish() error {
	for i, p := range s.procs {
		select {
		case <-p.done:
		case <-time.After(s.stall):
			return s.stalled(i)
		}
	}
	select {
	case <-s.feed.done:
		if s.feed.err != nil { // which the programs may have failed for
			return s.feed.err
		}
	default:
	}
	for _, p := range s.procs {
		if p.err != nil {
			return fmt.Errorf("stream processor %s: %w: %w", p.id, p.err, errdefs.ErrFailedPrecondition)
		}
	}
	<-s.feed.done
	return s.feed.err
}

func (s *Stream) stalled(i int) error {
	return fmt.Errorf("stream processor %s: nothing came or went for %v: %w", s.procs[i].id, s.stall,
		errdefs.ErrFailedPrecondition)
}

// Close ends the programs.
func (s *Stream) Close() error {
	s.closing.Do(func() {
		for _, p := range s.procs {
			p.kill()
		}
		s.blob.Close() // ends a Read of the feed
		s.feed.to.Close()
		if s.out != nil {
			s.out.Close()
		}
		for _, p := range s.procs {
			<-p.done
		}
		<-s.feed.done
	})
	return nil
}

// Decode is Start for a snapshot store: it returns the media type that the stream has.
func Decode(chain []Processor, opts *Options) func(context.Context, string, io.ReadCloser) (
	string, io.ReadCloser, error,
) {
	return func(_ context.Context, mediaType string, blob io.ReadCloser) (string, io.ReadCloser, error) {
		s, err := Start(chain, mediaType, blob, opts)
		if err != nil {
			return "", nil, err
		}
		return chain[len(chain)-1].Returns, s, nil
	}
}

// environment is that of this process, without what systemd told this process alone.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
			return true
		}
		return false
	})
}
