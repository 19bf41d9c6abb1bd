// Package printable makes text from other programs and users safe for a terminal and a log, and writes sizes
// and digests for people.
//
// It owns nothing on disk.
//
// Its invariant: the output is valid UTF-8 without C0, DEL and C1 controls, format and bidi controls, and
// line and paragraph separators. Only Writer passes the program's own line breaks and tabs. Text and Message
// also bound the length.
//
// The surprising rule: a backslash is not escaped, so text does not grow when it is made printable twice. The
// original text can't be restored from the result.
package printable

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The lengths of the longest results, in bytes.
const (
	textLimit    = 1 << 10
	messageLimit = 8 << 10
)

// Text returns a value from another program or user (a name, a digest, a path, a header) on one line and at
// most 1 KiB long. It leaves out the middle of a longer text.
func Text(s string) string { return clip(escape(s, ""), len(s), textLimit) }

// Message is like Text for a message of up to 8 KiB.
func Message(s string) string { return clip(escape(s, ""), len(s), messageLimit) }

// Fprintf is like fmt.Fprintf and makes the arguments printable: strings, errors and Stringers as Text does,
// other values after fmt has formatted them. The format is part of the program and passes unchanged.
func Fprintf(w io.Writer, format string, args ...any) (int, error) {
	safe := make([]any, len(args))
	for i, arg := range args {
		safe[i] = value(arg)
	}
	return fmt.Fprintf(w, format, safe...)
}

// value returns numbers and booleans unchanged, and other values as printable text.
func value(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, uintptr, float32, float64:
		return v
	case error:
		return Message(v.Error())
	case string:
		return Text(v)
	case []byte:
		return Text(string(v))
	}
	return Text(fmt.Sprint(v))
}

// safe reports whether a rune may be printed. Letters, marks, numbers, punctuation, symbols and spaces may.
// Controls (Cc), format and bidi characters (Cf), line and paragraph separators (Zl, Zp), private and
// unassigned code points may not.
func safe(r rune) bool { return r >= ' ' && r < 0x7f || r > 0x9f && unicode.IsGraphic(r) }

// escape replaces every byte that is not UTF-8 and every rune that is neither safe nor in allowed.
func escape(s, allowed string) string {
	from := 0 // the part from here is not yet in b
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		invalid := r == utf8.RuneError && n == 1
		if !invalid && (safe(r) || strings.ContainsRune(allowed, r)) {
			i += n
			continue
		}
		b.WriteString(s[from:i])
		switch {
		case invalid:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
		from = i
	}
	if from == 0 {
		return s
	}
	b.WriteString(s[from:])
	return b.String()
}

// clip leaves out the middle of s if it is longer than limit. size is the length of the original text.
func clip(s string, size, limit int) string {
	if len(s) <= limit {
		return s
	}
	mark := fmt.Sprintf("[... %d bytes in all ...]", size)
	head, tail := (limit-len(mark))*3/4, len(s)-(limit-len(mark))/4
	for !utf8.RuneStart(s[head]) {
		head--
	}
	for !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + mark + s[tail:]
}

// maxClip is the length of the longest name or path that an error shows in full, in bytes.
const maxClip = 300

// Clip shortens a name or path from another program or user, so that it does not fill a message. It escapes nothing,
// because errors are escaped when they are printed.
func Clip(name string) string {
	if len(name) > maxClip {
		return name[:maxClip] + "..."
	}
	return name
}
