package printable

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// EncodeJSON writes v as JSON and a line break. It escapes every character that Text would escape, because
// encoding/json leaves DEL, C1 and format characters unchanged, and in a json.RawMessage also bytes that are
// not UTF-8. A reader decodes the same value. indent is that of json.MarshalIndent; "" means one line.
func EncodeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(escapeJSON(b.Bytes()))
	return err
}

// escapeJSON escapes the unsafe characters in the strings of a JSON text. Outside of strings, JSON has only
// ASCII and white space.
func escapeJSON(data []byte) []byte {
	from := 0 // the part from here is not yet in b
	var b bytes.Buffer
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		invalid := r == utf8.RuneError && n == 1
		if !invalid && (safe(r) || r < ' ') {
			i += n
			continue
		}
		b.Write(data[from:i])
		if r < 0x10000 {
			fmt.Fprintf(&b, `\u%04x`, r) // bytes that are not UTF-8 become U+FFFD, as encoding/json decodes them
		} else {
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		}
		i += n
		from = i
	}
	if from == 0 {
		return data
	}
	b.Write(data[from:])
	return b.Bytes()
}
