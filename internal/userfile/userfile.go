// Package userfile reads small files that the user names: configuration, certificates, lists of credentials.
//
// It owns nothing on disk.
//
// Its invariant: a read allocates no more memory than the limit, and ends when the context ends, whatever
// type of file the path leads to.
//
// The surprising rule: unlike the files of package regular, these files may be links, pipes or terminals, so that
// `--config <(command)` works. If no process opens a pipe for writing within five seconds, that is an error, because
// otherwise a forgotten pipe would block every command.
package userfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// writerWithin is how long a read waits for the writer of a pipe.
const writerWithin = 5 * time.Second

// look is the interval in which a pipe and the context are checked while there is nothing to read.
const look = 20 * time.Millisecond

// ReadFile returns the content of a file of at most limit bytes. It returns the errors of os.Open, the error
// of ctx, or errdefs.ErrInvalidArgument for a directory, a larger file, and a pipe without a writer.
func ReadFile(ctx context.Context, path string, limit int64) ([]byte, error) {
	fd, err := open(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFDIR:
		return nil, fmt.Errorf("file %s: a directory: %w", path, errdefs.ErrInvalidArgument)
	// checked first, so that nothing of a sparse file of a terabyte is read
	case kind == unix.S_IFREG && st.Size > limit:
		return nil, tooLarge(path, limit)
	}
	r := reader{fd: fd, pipe: st.Mode&unix.S_IFMT == unix.S_IFIFO, silent: time.Now().Add(writerWithin)}
	data, err := r.readAll(ctx, limit)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("file %s: %w", path, ctx.Err())
	case errors.Is(err, errNoWriter):
		return nil, fmt.Errorf("file %s: a pipe into which nobody writes: %w", path, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	case int64(len(data)) > limit:
		return nil, tooLarge(path, limit)
	}
	return data, nil
}

// open opens a file. It does not wait for the other end of a pipe, and a terminal does not become the
// controlling terminal.
func open(path string) (fd int, err error) {
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func tooLarge(path string, limit int64) error {
	return fmt.Errorf("file %s: more than %d bytes: %w", path, limit, errdefs.ErrInvalidArgument)
}

var errNoWriter = errors.New("no writer")

// reader reads from a descriptor in non-blocking mode.
type reader struct {
	fd     int
	pipe   bool
	wrote  bool      // the pipe has, or had, a writer
	silent time.Time // when to give up waiting for a writer
}

// readAll reads until the end, or one byte more than limit.
func (r *reader) readAll(ctx context.Context, limit int64) ([]byte, error) {
	data := make([]byte, 0, min(limit+1, 4096))
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		room := data[len(data):min(int64(cap(data)), limit+1)]
		n, err := unix.Read(r.fd, room)
		switch {
		case err == unix.EAGAIN:
			r.wrote = true // a pipe without a writer would report its end
			wait := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(wait, int(look.Milliseconds())); err != nil && err != unix.EINTR {
				return nil, err
			}
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n > 0:
			r.wrote = true
			if data = data[:len(data)+n]; int64(len(data)) > limit {
				return data, nil
			}
		case !r.pipe || r.wrote:
			return data, nil
		case time.Now().After(r.silent):
			return nil, errNoWriter
		default:
			time.Sleep(look)
		}
	}
}
