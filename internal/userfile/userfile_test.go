package userfile_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/userfile"
)

const limit = 100 << 10

func TestReadFile(t *testing.T) {
	t.Parallel()
	invalid := errdefs.IsInvalidArgument
	missing := func(err error) bool { return errors.Is(err, os.ErrNotExist) }
	must := func(t *testing.T, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Repeat("key = 1\n", 10000) // more than a pipe holds
	for name, tt := range map[string]struct {
		make func(t *testing.T, path string) string
		want string
		err  func(error) bool
	}{
		"a file": {func(t *testing.T, p string) string {
			must(t, os.WriteFile(p, []byte(text),
				0o600))
			return p
		}, text, nil},
		"empty": {func(t *testing.T, p string) string { must(t, os.WriteFile(p, nil, 0o600)); return p }, "", nil},
		"a link": {func(t *testing.T, p string) string {
			must(t, errors.Join(os.WriteFile(p, []byte("x"), 0o600), os.Symlink(p, p+".link")))
			return p + ".link"
		}, "x", nil},
		"missing":     {func(_ *testing.T, p string) string { return p }, "", missing},
		"a directory": {func(t *testing.T, p string) string { must(t, os.Mkdir(p, 0o700)); return p }, "", invalid},
		"of a terabyte": {func(t *testing.T, p string) string {
			must(t, errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)))
			return p
		}, "", invalid},
		"of just the limit": {func(t *testing.T, p string) string {
			must(t, os.WriteFile(p, bytes.Repeat([]byte("x"), limit), 0o600))
			return p
		}, strings.Repeat("x", limit), nil},
		"without an end": {func(*testing.T, string) string { return "/dev/zero" }, "", invalid},
		"of proc":        {func(*testing.T, string) string { return "/proc/sys/kernel/ostype" }, "Linux\n", nil},
		"a pipe with nobody": {func(t *testing.T, p string) string { must(t, unix.Mkfifo(p, 0o600)); return p },
			"", invalid},
		"a pipe with a late writer": {func(t *testing.T, p string) string {
			must(t, unix.Mkfifo(p, 0o600))
			go func() {
				time.Sleep(100 * time.Millisecond)
				f, err := os.OpenFile(p, os.O_WRONLY, 0)
				if err != nil {
					return
				}
				defer f.Close()
				for _, half := range []string{text[:len(text)/2], text[len(text)/2:]} {
					_, _ = f.WriteString(half)
					time.Sleep(50 * time.Millisecond)
				}
			}()
			return p
		}, text, nil},
		"a pipe without an end": {func(t *testing.T, p string) string {
			must(t, unix.Mkfifo(p, 0o600))
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			must(t, err)
			t.Cleanup(func() { f.Close() })
			go func() {
				for _, err := f.Write(make([]byte, 4096)); err == nil; _, err = f.Write(make([]byte, 4096)) {
				}
			}()
			return p
		}, "", invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, err := userfile.ReadFile(ctx, tt.make(t, filepath.Join(t.TempDir(), "f")), limit)
			if tt.err == nil && err != nil || tt.err != nil && !tt.err(err) {
				t.Fatalf("error: %v", err)
			}
			if string(got) != tt.want {
				t.Errorf("%d bytes, want %d", len(got), len(tt.want))
			}
		})
	}
}

// TestCancel: a read of a pipe with a silent writer ends with the context.
func TestCancel(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := userfile.ReadFile(ctx, path, limit); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}
