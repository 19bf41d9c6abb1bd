// Package processor runs stream processors: programs that convert a blob of a media type that Tank can't
// read, such as an encrypted layer, into another media type. They are configured in the section
// stream_processors of containerd's config.
//
// It owns nothing on disk.
//
// Its invariant: no program outlives its stream, and no output is trusted. A stream ends with io.EOF only after all
// programs have succeeded and the whole blob was read, which includes the verification of its digest.
//
// The surprising rule: a program is killed with its process group, so the programs that it has started end as well.
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

// Processor is one program. The names of its fields are those of containerd's config.
type Processor struct {
	// ID is also the name by which a client sends a payload for the program.
	ID      string   `toml:"-"`
	Accepts []string `toml:"accepts"`
	Returns string   `toml:"returns"`
	// Path is a path, or a name that is searched in $PATH.
	Path string   `toml:"path"`
	Args []string `toml:"args"`
	Env  []string `toml:"env"`
}

// Find returns an error if the program does not exist or is not executable.
func (p Processor) Find() error {
	_, err := exec.LookPath(p.Path)
	return err
}

// maxChain is the largest number of programs in a chain.
const maxChain = 8

// stall is the default of Options.Stall.
const stall = 5 * time.Minute

// Chain returns the processors that convert a blob of the media type into a media type that done accepts, in
// the order in which they run. nil if there is no such chain, or if none is needed.
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

// Options of Start. nil means the zero value.
type Options struct {
	// Payloads are sent to the processors with these IDs on descriptor 3, as containerd does. nil: none.
	Payloads map[string][]byte
	// Stall is how long a program may neither read nor write bytes while a Read waits. 0: 5 minutes.
	Stall time.Duration
}

// Stream is the output of the last processor of a chain. Errors of a program have the class ErrFailedPrecondition and
// contain the end of what it wrote to stderr. Close ends all programs and closes the blob. It may be called more than
// once, and ends a Read that waits.
type Stream struct {
	blob  io.ReadCloser
	out   *os.File
	feed  *feed
	procs []*process
	stall time.Duration

	closing sync.Once
	ended   bool // Read returned io.EOF
}

// Start starts the processors of a chain on a blob of the media type. The chain must not be empty. If Start fails, it
// closes the blob.
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
		in.Close() // the program has its own descriptor
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
			fed = now // the program still reads
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

// finish waits until the programs have ended and the blob is read. A program may end before it has read the
// whole blob.
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
		s.blob.Close() // ends a Read in feed
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

// Decode is Start for a snapshot store. It also returns the media type of the stream.
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

// environment returns the environment of this process without the variables of systemd, which are for this
// process only.
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
