package printable

import (
	"maps"

	"github.com/containerd/log"
)

// Formatter formats log entries.
type Formatter interface {
	Format(*log.Entry) ([]byte, error)
}

// LogFormatter returns a formatter that makes the message and the fields of each entry printable and then
// calls inner. Text that inner adds, such as colors, is not escaped.
func LogFormatter(inner Formatter) Formatter { return formatter{inner} }

type formatter struct{ inner Formatter }

func (f formatter) Format(e *log.Entry) ([]byte, error) {
	safe := *e
	safe.Message = Message(e.Message)
	safe.Data = maps.Clone(e.Data)
	for k, v := range safe.Data {
		safe.Data[k] = value(v)
	}
	return f.inner.Format(&safe)
}
