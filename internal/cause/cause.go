// Package cause names the causes of errors about which a user can do something, with an exit code and advice
// for each.
//
// It owns nothing on disk. Its invariant: one cause has one exit code and one sentence of advice, whichever command
// failed and whichever process did the work.
//
// The surprising rule: the outermost mark of a chain counts. A caller that knows more about an error marks it again,
// and the marks below no longer matter.
package cause

// Kind is a cause. The zero value means that none is known.
type Kind string

// Cause is a kind of cause and its subject.
type Cause struct {
	Kind Kind
	// Subject is the host, path or name that the advice mentions. "": the advice mentions none.
	Subject string
}

// Mark returns err with a cause. The text, the class and the chain of err stay. Mark returns nil for nil.
func Mark(err error, kind Kind, subject string) error {
	if err == nil {
		return nil
	}
	return marked{err, Cause{kind, subject}}
}

// Default marks an error that has no known cause, as Mark does. It returns other errors unchanged.
func Default(err error, kind Kind, subject string) error {
	if Of(err).Kind != "" {
		return err
	}
	return Mark(err, kind, subject)
}

// marked is an error with a cause.
type marked struct {
	error
	cause Cause
}

func (m marked) Unwrap() error { return m.error }

// Cause returns the cause of the error.
func (m marked) Cause() Cause { return m.cause }

// Of returns the cause of an error. If several errors are joined, the most serious cause counts: the one that comes
// first in the table. An error type of another package can have a method Cause. Some errors of the system, such as
// ENOSPC, have a cause without a mark.
func Of(err error) Cause {
	if err == nil {
		return Cause{}
	}
	if c, ok := err.(interface{ Cause() Cause }); ok && c.Cause().Kind != "" {
		return c.Cause()
	}
	if kind := system(err); kind != "" {
		return Cause{Kind: kind}
	}
	switch e := err.(type) { //nolint:errorlint // this function walks the tree itself
	case interface{ Unwrap() error }:
		return Of(e.Unwrap())
	case interface{ Unwrap() []error }:
		var worst Cause
		for _, joined := range e.Unwrap() {
			if c := Of(joined); c.Kind != "" && (worst.Kind == "" || rank(c.Kind) < rank(worst.Kind)) {
				worst = c
			}
		}
		return worst
	}
	return Cause{}
}

// Is reports whether the cause of an error is of a kind.
func Is(err error, kind Kind) bool { return Of(err).Kind == kind }
