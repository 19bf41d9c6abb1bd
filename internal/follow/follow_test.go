package follow

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// TestReader follows an ingest of 8 bytes, of which 4 are written, and checks what the reader
// returns after each event. The tests of package content do the same with real writers.
func TestReader(t *testing.T) {
	const d = digest.Digest("sha256:aa")
	const data = "01234567"
	canceled := errors.New("canceled")
	for name, tc := range map[string]struct {
		blob string // that another writer has committed; "": none
		then func(in *Ingest, table *Table, r *Reader, cancel context.CancelCauseFunc)
		want string
		is   func(error) bool // nil: io.EOF
	}{
		"committed": {"", func(in *Ingest, _ *Table, _ *Reader, _ context.CancelCauseFunc) {
			in.Grow(8)
			in.End(Committed, "")
		}, data, nil},
		"ended": {"", func(in *Ingest, _ *Table, _ *Reader, _ context.CancelCauseFunc) {
			in.End(Ended, "aborted")
			in.End(Committed, "") // has no effect
		}, "0123", errdefs.IsUnavailable},
		"superseded": {data, func(in *Ingest, table *Table, _ *Reader, _ context.CancelCauseFunc) {
			table.Committed(d, nil)
		}, data, nil},
		"superseded by something else": {"0122....",
			func(in *Ingest, table *Table, _ *Reader, _ context.CancelCauseFunc) {
				table.Committed(d, nil)
			}, "0123", errdefs.IsUnavailable},
		"superseded and removed": {"", func(in *Ingest, table *Table, _ *Reader, _ context.CancelCauseFunc) {
			table.Committed(d, nil)
		}, "0123", errdefs.IsNotFound},
		"superseded and truncated": {data, func(in *Ingest, table *Table, _ *Reader, _ context.CancelCauseFunc) {
			table.Committed(d, nil)
			in.End(Ended, "truncated")
		}, "0123", errdefs.IsUnavailable},
		"closed": {"", func(_ *Ingest, _ *Table, r *Reader, _ context.CancelCauseFunc) {
			r.Close()
		}, "0123", func(err error) bool { return errors.Is(err, fs.ErrClosed) }},
		"canceled": {"", func(_ *Ingest, _ *Table, _ *Reader, cancel context.CancelCauseFunc) {
			cancel(canceled)
		}, "0123", func(err error) bool { return errors.Is(err, canceled) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f, err := os.Create(filepath.Join(dir, "data"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := os.WriteFile(f.Name(), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			table := NewTable(func(digest.Digest) (*os.File, error) {
				if tc.blob == "" {
					return nil, errdefs.ErrNotFound
				}
				path := filepath.Join(dir, "blob")
				return mustOpen(t, path), os.WriteFile(path, []byte(tc.blob), 0o600)
			})
			in := NewIngest(d, f, 4)
			table.Replace(nil, NewIngest(d, f, 1)) // the larger one is read
			table.Replace(nil, in)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r, err := table.Follow(ctx, d)
			if err != nil || r == nil {
				t.Fatalf("%v, %v", r, err)
			}
			defer r.Close()
			got := make([]byte, 4)
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Millisecond, func() { tc.then(in, table, r, cancel) })
			rest, err := io.ReadAll(r)
			if got := string(got) + string(rest); got != tc.want || tc.is == nil != (err == nil) || tc.is != nil &&
				!tc.is(err) {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

func mustOpen(t *testing.T, path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Error(err)
	}
	return f
}

func TestTable(t *testing.T) {
	table := NewTable(nil)
	a, b, unnamed := NewIngest("a", nil, 0), NewIngest("b", nil, 0), NewIngest("", nil, 0)
	for _, tc := range []struct {
		old, next *Ingest
		want      int
	}{{nil, a, 1}, {nil, unnamed, 1}, {a, b, 1}, {nil, a, 2}, {a, a, 2}, {a, nil, 1}, {unnamed, nil, 1}, {b, nil, 0}} {
		if table.Replace(tc.old, tc.next); table.Len() != tc.want {
			t.Errorf("replace %v by %v: %d blobs", tc.old, tc.next, table.Len())
		}
	}
	if r, err := table.Follow(t.Context(), "a"); r != nil || err != nil {
		t.Errorf("an unknown blob: %v, %v", r, err)
	}
	table.Replace(nil, a)
	a.End(Ended, "closed")
	if r, err := table.Follow(t.Context(), "a"); r != nil || err != nil {
		t.Errorf("an ingest that has ended: %v, %v", r, err)
	}
}
