package follow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/containerd/errdefs"
)

// compareSize is how many bytes are compared at once.
const compareSize = 256 << 10

// Reader reads an ingest as it grows. Only one goroutine may read; any goroutine may close. Its
// errors are of class errdefs.ErrUnavailable when the ingest ended without becoming the blob, and
// errdefs.ErrNotFound when the blob that another writer committed was removed again. When the
// context of Follow ends, its cause is the error; after Close, it is fs.ErrClosed.
type Reader struct {
	table     *Table
	in        *Ingest
	f         *os.File // the ingest's, or the blob's
	committed bool     // f is the blob that another writer has committed
	offset    int64
	release   func() bool // ends the watch over the context

	files  sync.Mutex // held while f is replaced or closed; guards closed
	closed bool

	once    sync.Once
	stopped chan struct{}
	cause   error // set before stopped is closed
}

func (r *Reader) stop(cause error) {
	r.once.Do(func() {
		r.cause = cause
		close(r.stopped)
	})
}

// Close ends a Read that waits.
func (r *Reader) Close() error {
	r.release()
	r.stop(fs.ErrClosed)
	r.files.Lock()
	defer r.files.Unlock()
	r.closed = true
	return r.f.Close()
}

// Read returns bytes that are in the file, and waits if there are none yet.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		select {
		case <-r.stopped:
			return 0, r.fault(r.cause.Error(), r.cause)
		default:
		}
		if r.committed {
			n, err := r.f.ReadAt(p, r.offset)
			r.offset += int64(n)
			if n > 0 {
				err = nil
			}
			return n, err
		}
		size, state, changed := r.in.look()
		switch {
		case state == Superseded:
			if err := r.switchToBlob(); err != nil {
				return 0, err
			}
			continue
		case state == Ended:
			return 0, r.fault(r.in.cause, errdefs.ErrUnavailable)
		case r.offset < size:
			return r.readIngest(p[:min(int64(len(p)), size-r.offset)])
		case state == Committed:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-r.stopped:
		}
	}
}

// readIngest reads bytes that the writer has announced. A truncation ends the ingest before it
// changes the file. So if the ingest has not ended after the read, the file had not been truncated
// before it.
func (r *Reader) readIngest(p []byte) (int, error) {
	n, err := r.f.ReadAt(p, r.offset)
	if _, state, _ := r.in.look(); state == Ended {
		return 0, r.fault(r.in.cause, errdefs.ErrUnavailable)
	}
	if n == 0 {
		if errors.Is(err, fs.ErrClosed) {
			return 0, r.fault("closed", fs.ErrClosed)
		}
		return 0, r.fault(fmt.Sprintf("read at %d: %v", r.offset, err), errdefs.ErrUnavailable)
	}
	r.offset += int64(n)
	return n, nil
}

// switchToBlob continues with the blob that another writer has committed, if that begins with the
// bytes that were read so far. The state of the ingest is checked after the comparison, because a
// truncation ends the ingest before it changes the file.
func (r *Reader) switchToBlob() error {
	blob, err := r.table.open(r.in.digest)
	if errdefs.IsNotFound(err) { // it was removed
		return fmt.Errorf("ingest of blob %s: %w", r.in.digest, err)
	}
	if err != nil {
		return r.fault(err.Error(), errdefs.ErrUnavailable)
	}
	same, err := r.equals(blob)
	if _, state, _ := r.in.look(); err == nil && (!same || state == Ended) {
		err = errors.New("the bytes so far are not the beginning of the blob that another writer committed")
	}
	if err != nil {
		blob.Close()
		return r.fault(err.Error(), errdefs.ErrUnavailable)
	}
	r.files.Lock()
	defer r.files.Unlock()
	old := r.f
	r.f, r.committed = blob, true
	if r.closed {
		return errors.Join(r.fault("closed", fs.ErrClosed), blob.Close())
	}
	return old.Close()
}

// equals reports whether the blob begins with the bytes that were read so far.
func (r *Reader) equals(blob *os.File) (bool, error) {
	a, b := make([]byte, compareSize), make([]byte, compareSize)
	for at := int64(0); at < r.offset; {
		select {
		case <-r.stopped:
			return false, r.cause
		default:
		}
		n := min(r.offset-at, compareSize)
		if _, err := r.f.ReadAt(a[:n], at); err != nil {
			return false, err
		}
		if _, err := blob.ReadAt(b[:n], at); err != nil || !bytes.Equal(a[:n], b[:n]) {
			return false, nil //nolint:nilerr // a blob that is shorter is a different one
		}
		at += n
	}
	return true, nil
}

func (r *Reader) fault(cause string, class error) error {
	if cause == class.Error() {
		return fmt.Errorf("ingest of blob %s: %w", r.in.digest, class)
	}
	return fmt.Errorf("ingest of blob %s: %s: %w", r.in.digest, cause, class)
}
