package leftover

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestJoin(t *testing.T) {
	flag, io := New("/r/a", true, fs.ErrPermission), New("/r/b\x1b[2J", false, errors.New("input/output error"))
	other := errors.New("other")
	var many []error
	for i := range 20 {
		many = append(many, New(fmt.Sprint(i), true, fs.ErrPermission))
	}
	for name, tc := range map[string]struct {
		err       error
		count     int
		protected bool
		rest      error
		text      string
	}{
		"nothing":         {Join(nil, nil), 0, false, nil, ""},
		"only others":     {Join(nil, other), 0, false, other, ""},
		"protected":       {Join(fmt.Errorf("sweep: %w", flag), nil), 1, true, nil, `"/r/a"`},
		"one is not":      {Join(flag, errors.Join(nil, io)), 2, false, nil, "input/output error"},
		"escapes":         {Join(io), 1, false, nil, `\x1b`},
		"with others":     {Join(other, flag), 1, true, other, ""},
		"more than shown": {Join(many...), 20, true, nil, "and 12 more"},
	} {
		left, rest := Split(tc.err)
		count, protected := 0, false
		if left != nil {
			count, protected = left.Count, left.Protected
		}
		if count != tc.count || protected != tc.protected || !errors.Is(rest, tc.rest) ||
			(tc.rest == nil) != (rest == nil) {
			t.Errorf("%s: %+v, rest %v", name, left, rest)
		}
		if tc.text != "" && !strings.Contains(tc.err.Error(), tc.text) {
			t.Errorf("%s: %q", name, tc.err)
		}
		if tc.err == nil != (tc.count == 0 && tc.rest == nil) {
			t.Errorf("%s: %v", name, tc.err)
		}
	}
	if flag.Count != 1 || io.Count != 1 {
		t.Error("an operand was changed")
	}
}
