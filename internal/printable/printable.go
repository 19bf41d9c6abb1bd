// Package printable makes text of others safe to print on a terminal and to write to a log, and writes sizes
// and digests for people.
//
// It owns nothing on disk.
//
// Its invariant: what it returns or passes on is valid UTF-8 without C0, DEL, C1, format and bidi controls,
// and line and paragraph separators; only Writer lets the line breaks and tabs of the program itself pass.
// Text and Message also bound the length.
//
// The surprising rule: a backslash is not escaped, so that text may be made printable twice without growing.
// The result is for people, and cannot be turned back.
package printable

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The longest results, in bytes.
const (
	textLimit    = 1 << 10
	messageLimit = 8 << 10
)

// Text returns one value that others chose (a name, a digest, a path, a header), on one line and at most 1 KiB long.
// The middle of a longer text is left out.
func Text(s string) string { return clip(escape(s, ""), len(s), textLimit) }

// Message is like Text for a whole message, which may be 8 KiB long.
func Message(s string) string { return clip(escape(s, ""), len(s), messageLimit) }

// Fprintf is like fmt.Fprintf and makes the arguments printable: strings, errors and Stringers as by Text, everything
// else after fmt has formatted it. The format is the program's own and passes unchanged.
func Fprintf(w io.Writer, format string, args ...any) (int, error) {
	safe := make([]any, len(args))
	for i, arg := range args {
		safe[i] = value(arg)
	}
	return fmt.Fprintf(w, format, safe...)
}

// value returns numbers and booleans unchanged, and everything else as printable text.
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

// safe reports whether a rune may be printed: letters, marks, numbers, punctuation, symbols and spaces.
// Controls (Cc), format and bidi characters (Cf), line and paragraph separators (Zl, Zp), private and
// unassigned code points may not.
func safe(r rune) bool { return r >= ' ' && r < 0x7f || r > 0x9f && unicode.IsGraphic(r) }

// escape replaces every byte that is not UTF-8 and every rune that is neither safe nor in allowed.
func escape(s, allowed string) string {
	from := 0 // what was not yet written to b
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

// maxClip is the size in bytes of a name or path that an error shows whole.
const maxClip = 300

// Clip shortens a name or path of others, so that it does not fill a message. It escapes nothing: errors are escaped
// when they are printed.
func Clip(name string) string {
	if len(name) > maxClip {
		return name[:maxClip] + "..."
	}
	return name
}
