package regular_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/regular"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(at("small"), []byte("1234"), 0o600))
	must(os.WriteFile(at("huge"), nil, 0o600))
	must(os.Truncate(at("huge"), 1<<40))
	must(os.Symlink("small", at("link")))
	must(os.Symlink("/dev/zero", at("zero")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(os.Mkdir(at("dir"), 0o700))
	l, err := net.Listen("unix", at("socket"))
	must(err)
	defer l.Close()

	for _, tt := range []struct {
		name  string
		limit int64
		want  error
	}{
		{"small", 4, nil},
		{"small", 3, errdefs.ErrDataLoss},
		{"huge", 1 << 20, errdefs.ErrDataLoss},
		{"link", 4, errdefs.ErrDataLoss},
		{"zero", 4, errdefs.ErrDataLoss},
		{"fifo", 4, errdefs.ErrDataLoss},
		{"dir", 4, errdefs.ErrDataLoss},
		{"socket", 4, errdefs.ErrDataLoss},
		{"missing", 4, os.ErrNotExist},
	} {
		start := time.Now()
		b, err := regular.ReadFile(at(tt.name), tt.limit)
		if !errors.Is(err, tt.want) || (tt.want == nil && string(b) != "1234") {
			t.Errorf("%s, at most %d bytes: %q, %v; want %v", tt.name, tt.limit, b, err, tt.want)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s: took %v", tt.name, d)
		}
	}
}

func ExampleReadFile() {
	_, err := regular.ReadFile("/dev/null", 1<<20)
	if errdefs.IsDataLoss(err) {
		os.Stdout.WriteString("not a regular file\n")
	}
	// Output: not a regular file
}
