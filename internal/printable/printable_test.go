package printable_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/printable"
)

func Example() {
	fmt.Println(printable.Text("sha256:\x1b[31mred\n"))
	// Output: sha256:\x1b[31mred\n
}

func TestText(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"plain", "docker.io/library/alpine:3 jürgen 新 \\", "docker.io/library/alpine:3 jürgen 新 \\"},
		{"spaces", "a\u00a0b\u3000c", "a\u00a0b\u3000c"},
		{"C0", "\x00\x07\x1b]0;t\x07\n\r\t", `\x00\x07\x1b]0;t\x07\n\r\t`},
		{"DEL", "a\x7fb", `a\x7fb`},
		{"C1", "\u0080\u009b31m\u009f", `\u0080\u009b31m\u009f`},
		{"bytes that are C1 in Latin-1", "\x9b31m\xff", `\x9b31m\xff`},
		{"U+FFFD", "\ufffd", "\ufffd"},
		{"bidi", "\u202eexe\u2066\u200f", `\u202eexe\u2066\u200f`},
		{"separators", "a\u2028b\u2029", `a\u2028b\u2029`},
		{"tags and invisible", "\U000e0041\ufeff\u200b", `\U000e0041\ufeff\u200b`},
		{"a surrogate as UTF-8", "\xed\xa0\x80", `\xed\xa0\x80`},
		{"empty", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := printable.Text(tt.in)
			if got != tt.want {
				t.Errorf("Text(%q) = %q, want %q", tt.in, got, tt.want)
			}
			if again := printable.Text(got); again != got {
				t.Errorf("Text is not idempotent: %q, then %q", got, again)
			}
		})
	}
}

func TestLongText(t *testing.T) {
	for name, s := range map[string]string{
		"ASCII": strings.Repeat("a", 100<<10), "runes": strings.Repeat("新", 100<<10),
		"escapes": strings.Repeat("\x1b", 100<<10),
	} {
		for limit, f := range map[int]func(string) string{1 << 10: printable.Text, 8 << 10: printable.Message} {
			got := f(s)
			if len(got) > limit || !utf8.ValidString(got) || f(got) != got || !strings.Contains(got,
				fmt.Sprint(len(s), " bytes in all")) {
				t.Errorf("%s: %d bytes of at most %d: %.60q", name, len(got), limit, got)
			}
		}
	}
}

func TestFprintf(t *testing.T) {
	var b bytes.Buffer
	printable.Fprintf(&b, "%s|%v|%v|%d|%s|%v\n", "a\nb", errors.New("e\x1b"), []string{"\u009b"}, 7,
		[]byte("\x7f"), nil)
	if want := `a\nb|e\x1b|[\u009b]|7|\x7f|<nil>` + "\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestWriter(t *testing.T) {
	in := "a\n\tb\r\x1b[0m新\u009b\xe6\x96"
	want := "a\n\tb" + `\r\x1b[0m新\u009b\xe6\x96`
	for size := 1; size <= len(in); size++ { // runes are cut everywhere
		var b bytes.Buffer
		w := printable.NewWriter(&b)
		for rest := in; rest != ""; {
			n := min(size, len(rest))
			if got, err := w.Write([]byte(rest[:n])); got != n || err != nil {
				t.Fatalf("Write: %d, %v", got, err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("in pieces of %d: %q, want %q", size, b.String(), want)
		}
	}
}

func TestEncodeJSON(t *testing.T) {
	text := "\x1b\x7f\u009b31m\u202e\u2028\U000e0041新<&>\n"
	raw := json.RawMessage("{\"k\x7f\":\"\u009b\xff\"}")
	var b bytes.Buffer
	if err := printable.EncodeJSON(&b, []any{text, raw}, "  "); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && printable.Text(string(r)) != string(r) || r == utf8.RuneError {
			t.Errorf("%U in %q", r, b.String())
		}
	}
	var got []any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got[0] != text || fmt.Sprint(got[1]) != "map[k\x7f:\u009b\ufffd]" {
		t.Errorf("decodes as %q", got)
	}
}

type plain struct{}

func (plain) Format(e *log.Entry) ([]byte, error) {
	return fmt.Appendf(nil, "\x1b[36m%s %v", e.Message, e.Data), nil
}

func TestLogFormatter(t *testing.T) {
	e := &log.Entry{Message: "m\n\x1b", Data: log.Fields{"error": errors.New("\u009b"), "n": 1}}
	got, err := printable.LogFormatter(plain{}).Format(e)
	if want := "\x1b[36m" + `m\n\x1b map[error:\u009b n:1]`; string(got) != want || err != nil {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	if e.Message != "m\n\x1b" {
		t.Error("the entry of the caller was changed")
	}
}
