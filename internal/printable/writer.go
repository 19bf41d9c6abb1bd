package printable

import (
	"io"
	"sync"
	"unicode/utf8"
)

// Writer escapes everything that is written through it, except line breaks and tabs. It is the last barrier
// before a terminal or a log. Code that puts text from another program into a message has to use Text as
// well, because Writer can't distinguish a line break in that text from one of the program.
//
// The zero value can't be used. Several goroutines may use one Writer.
type Writer struct {
	mu   sync.Mutex // guards the fields below
	w    io.Writer
	rest []byte // the beginning of a rune that the next Write should complete
}

// NewWriter returns a Writer in front of w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes p escaped. It returns len(p) unless w fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	data := p
	if len(w.rest) > 0 {
		data = append(w.rest, p...)
	}
	complete := len(data) - incomplete(data)
	w.rest = append([]byte(nil), data[complete:]...)
	return w.put(data[:complete], len(p))
}

// Flush writes the beginning of a rune that no Write completed.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.put(w.rest, 0)
	w.rest = nil
	return err
}

func (w *Writer) put(data []byte, n int) (int, error) {
	if len(data) == 0 {
		return n, nil
	}
	if _, err := io.WriteString(w.w, escape(string(data), "\n\t")); err != nil {
		return 0, err
	}
	return n, nil
}

// incomplete returns the length of an incomplete rune at the end of data, in bytes.
func incomplete(data []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		last := data[len(data)-n:]
		if utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				return n
			}
			break
		}
	}
	return 0
}
