// Package leftover describes what a removal could not remove.
//
// It owns nothing on disk.
//
// Its invariant: an Error names at least one path, and keeps a bounded number of them however many
// there are.
//
// The surprising rule: a file that a flag protects (chattr +i or +a) is no fault of the root.
// Somebody set the flag on purpose, and only that person can clear it, so callers report such files
// and do not fail. See docs/adr/0017.
package leftover

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// shown is how many paths an Error keeps.
const shown = 8

// Error is returned by a removal that skipped paths which it could not remove.
type Error struct {
	Paths     []string // the first few
	Count     int      // of all
	Protected bool     // every one of them has a flag that forbids its removal, or lies in a directory that has one
	Err       error    // of the first path
}

// New describes a removal that left one path.
func New(path string, protected bool, err error) *Error {
	return &Error{Paths: []string{path}, Count: 1, Protected: protected, Err: err}
}

// Add returns an Error for the paths of both e and other. Both may be nil, and neither is changed.
func (e *Error) Add(other *Error) *Error {
	if e == nil || other == nil {
		if e == nil {
			return other
		}
		return e
	}
	sum := &Error{
		Paths: append(slices.Clone(e.Paths), other.Paths...), Count: e.Count + other.Count,
		Protected: e.Protected && other.Protected, Err: e.Err,
	}
	sum.Paths = sum.Paths[:min(len(sum.Paths), shown)]
	if e.Protected && !other.Protected {
		sum.Err = other.Err // an error that is not a flag's is the important one
	}
	return sum
}

// Below returns e with dir in front of all paths.
func (e *Error) Below(dir string) *Error {
	for i, p := range e.Paths {
		e.Paths[i] = strings.TrimSuffix(dir, "/") + "/" + p
	}
	return e
}

// Error names the paths.
func (e *Error) Error() string {
	names := strings.Join(quoted(e.Paths), ", ")
	if more := e.Count - len(e.Paths); more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	if e.Protected {
		return fmt.Sprintf("not removed: %s: %v (immutable or append-only: chattr -i -a)", names, e.Err)
	}
	return fmt.Sprintf("not removed: %s: %v", names, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func quoted(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		if len(p) > 1024 {
			p = p[:1024] + "..."
		}
		out[i] = fmt.Sprintf("%q", p)
	}
	return out
}

// Split separates all leftovers from an error, joined ones included. rest is nil when err had
// nothing else.
func Split(err error) (left *Error, rest error) {
	joined, ok := err.(interface{ Unwrap() []error }) // a wrapped join is one error
	if ok {
		for _, e := range joined.Unwrap() {
			l, r := Split(e)
			left, rest = left.Add(l), errors.Join(rest, r)
		}
		return left, rest
	}
	if errors.As(err, &left) {
		return left, nil
	}
	return nil, err
}

// Join is like errors.Join, but merges all leftovers into one Error.
func Join(errs ...error) error {
	left, rest := Split(errors.Join(errs...))
	if left == nil { // a nil *Error in an interface would not be nil
		return rest
	}
	return errors.Join(rest, left)
}

// Protected reports whether a flag forbids the removal of name in the directory dir: its own flag
// or the directory's. name may also be a path, with unix.AT_FDCWD for dir.
func Protected(dir int, name string) bool {
	const flags = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND
	for _, at := range []string{name, parent(name)} {
		var st unix.Statx_t
		err := unix.Statx(dir, at, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
		if err == nil && st.Attributes&flags != 0 {
			return true
		}
	}
	return false
}

func parent(name string) string {
	i := strings.LastIndexByte(name, '/')
	switch {
	case i < 0:
		return "."
	case i == 0:
		return "/"
	}
	return name[:i]
}
