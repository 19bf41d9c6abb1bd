package cause_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

func ExampleMark() {
	err := fmt.Errorf("manifest 1: status 404: %w", errdefs.ErrNotFound)
	err = fmt.Errorf("reference r.example/x:1: %w", cause.Mark(err, cause.Tag, "r.example"))
	fmt.Println(err)
	code, _ := cause.Of(err).Exit()
	fmt.Println(code, cause.Of(err).Hint())
	// Output:
	// reference r.example/x:1: manifest 1: status 404: not found
	// 3 Are the name and the tag right? The registry r.example does not have them.
}

func TestOf(t *testing.T) {
	tag := cause.Mark(errdefs.ErrNotFound, cause.Tag, "")
	for name, tc := range map[string]struct {
		err  error
		want cause.Kind
	}{
		"nil":                     {nil, ""},
		"no cause":                {errors.New("x"), ""},
		"a class is no cause":     {fmt.Errorf("x: %w", errdefs.ErrPermissionDenied), ""},
		"a mark":                  {fmt.Errorf("x: %w", tag), cause.Tag},
		"the outermost mark":      {cause.Mark(fmt.Errorf("x: %w", tag), cause.NotCached, ""), cause.NotCached},
		"a default":               {cause.Default(errors.New("x"), cause.Tag, ""), cause.Tag},
		"no default above a mark": {cause.Default(tag, cause.NotCached, ""), cause.Tag},
		"the most serious of many": {errors.Join(tag, cause.Mark(errors.New("x"), cause.Database, ""), tag),
			cause.Database},
		"beside an error without": {fmt.Errorf("%w: %w", errdefs.ErrDataLoss, tag), cause.Tag},
		"a full disk":             {&os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}, cause.DiskFull},
		"a quota":                 {fmt.Errorf("x: %w", unix.EDQUOT), cause.DiskFull},
		"a full disk spoils layers": {fmt.Errorf("%w: %w", unix.ENOSPC, cause.Mark(errors.New("x"),
			cause.LayerInvalid, "")),
			cause.DiskFull},
		"permission":                {&os.PathError{Op: "open", Path: "x", Err: unix.EACCES}, cause.Denied},
		"not permitted":             {fmt.Errorf("tar entry: owner: %w", unix.EPERM), cause.Denied},
		"permission without number": {fmt.Errorf("x: %w", fs.ErrPermission), cause.Denied},
		"read-only":                 {os.NewSyscallError("open", unix.EROFS), cause.ReadOnly},
		"descriptors":               {fmt.Errorf("x: %w", unix.EMFILE), cause.Descriptors},
		"memory":                    {os.NewSyscallError("mmap", unix.ENOMEM), cause.Memory},
		"a bad disk":                {fmt.Errorf("x: %w", unix.EIO), cause.IO},
		"a deadline is no cause":    {context.DeadlineExceeded, ""},
	} {
		if got := cause.Of(tc.err).Kind; got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestMarkKeeps: a mark changes neither the text nor the class of an error.
func TestMarkKeeps(t *testing.T) {
	err := fmt.Errorf("x: %w", errdefs.ErrNotFound)
	marked := cause.Mark(err, cause.Tag, "host")
	if marked.Error() != err.Error() || !errdefs.IsNotFound(marked) || !errors.Is(marked, err) {
		t.Errorf("%v", marked)
	}
	if cause.Mark(nil, cause.Tag, "") != nil || cause.Default(nil, cause.Tag, "") != nil {
		t.Error("nil got a cause")
	}
}

// TestHints: each kind has one exit code and one sentence, and only causes at registries mention a login or TLS.
func TestHints(t *testing.T) {
	seen := map[cause.Kind]bool{}
	for _, kind := range cause.Kinds() {
		if seen[kind] {
			t.Errorf("%s is twice in the table", kind)
		}
		seen[kind] = true
		code, known := cause.Cause{Kind: kind}.Exit()
		if !known || code < cause.ExitOther || code > cause.ExitContent {
			t.Errorf("%s: code %d, %v", kind, code, known)
		}
		for _, subject := range []string{"", "SUBJECT"} {
			hint := cause.Cause{Kind: kind, Subject: subject}.Hint()
			if hint == "" && kind != cause.Usage || strings.Contains(hint, "%") {
				t.Errorf("%s: hint %q", kind, hint)
			}
			registry := code == cause.ExitDenied || code == cause.ExitNetwork
			for _, word := range []string{"docker login", "--plain-http", "certificate"} {
				if strings.Contains(hint, word) && !registry {
					t.Errorf("%s, which is no registry's: %q", kind, hint)
				}
			}
			if strings.Contains(hint, "--plain-http") && kind != cause.TLSToHTTP && kind != cause.HTTPToTLS {
				t.Errorf("%s: %q", kind, hint)
			}
		}
	}
	login := cause.Cause{Kind: cause.Unauthorized, Subject: "r.example:5000"}
	if hint := login.Hint(); !strings.Contains(hint, "docker login r.example:5000") {
		t.Errorf("login: %q", hint)
	}
	if (cause.Cause{}).Hint() != "" {
		t.Error("no cause has a hint")
	}
}
