package resolver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestHostFilesAsPipes checks that hosts.toml and certificates are read once, also from pipes, and
// with a limit.
func TestHostFilesAsPipes(t *testing.T) {
	reg := registrytest.NewTLS(t, nil)
	image(reg)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	toml := func(ca string) []byte { return fmt.Appendf(nil, "server = \"https://%s\"\nca = %q\n", reg.Host, ca) }
	write := func(t *testing.T, path string, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, dir, elsewhere string)
		ok      bool
	}{
		"all files": {func(t *testing.T, dir, _ string) {
			write(t, dir+"/hosts.toml", toml("ca.crt"))
			write(t, dir+"/ca.crt", reg.CA)
		}, true},
		"hosts.toml": {func(t *testing.T, dir, _ string) {
			pipeWith(t, dir+"/hosts.toml", toml("ca.pem"))
			write(t, dir+"/ca.pem", reg.CA)
		}, true},
		"a certificate beside it": {func(t *testing.T, dir, _ string) {
			write(t, dir+"/hosts.toml", toml("ca.pem"))
			pipeWith(t, dir+"/ca.pem", reg.CA)
		}, true},
		"a certificate elsewhere": {func(t *testing.T, dir, elsewhere string) {
			write(t, dir+"/hosts.toml", toml(elsewhere))
			pipeWith(t, elsewhere, reg.CA)
		}, true},
		"a certificate without hosts.toml": {func(t *testing.T, dir, _ string) { pipeWith(t, dir+"/ca.crt", reg.CA) },
			true},
		"hosts.toml, without a writer": {func(t *testing.T, dir, _ string) { pipeWith(t, dir+"/hosts.toml", nil) },
			false},
		"a certificate of a terabyte": {func(t *testing.T, dir, _ string) {
			write(t, dir+"/hosts.toml", toml("ca.crt"))
			write(t, dir+"/ca.crt", nil)
			if err := os.Truncate(dir+"/ca.crt", 1<<40); err != nil {
				t.Fatal(err)
			}
		}, false},
		"a certificate without an end": {func(t *testing.T, dir, _ string) {
			write(t, dir+"/hosts.toml", toml("/dev/zero"))
		}, false},
		"a key that hosts.toml does not name": {func(t *testing.T, dir, _ string) {
			write(t, dir+"/hosts.toml", toml("ca.crt"))
			write(t, dir+"/ca.crt", reg.CA)
			write(t, dir+"/other.key", []byte("no key"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := registrytest.CertsDir(t, reg.Host, nil)
			dir := filepath.Join(root, strings.ReplaceAll(reg.Host, ":", "_")+"_")
			tt.prepare(t, dir, filepath.Join(t.TempDir(), "elsewhere"))
			r, err := New(&Options{HostsDir: root, Backoff: time.Millisecond, Attempts: 1})
			if err != nil {
				t.Fatal(err)
			}
			_, err = pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
			if tt.ok != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { // after the parallel subtests
		left, _ := filepath.Glob(filepath.Join(temp, "tank-hosts-*"))
		if len(left) > 0 {
			t.Errorf("copies are left: %q", left)
		}
	})
}

// TestHostFilesEndWithTheContext checks that the wait for the writer of a pipe ends with the context.
func TestHostFilesEndWithTheContext(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	pipe := filepath.Join(root, "_default", "hosts.toml")
	if err := errors.Join(os.Mkdir(filepath.Dir(pipe), 0o700), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := New(&Options{HostsDir: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pull(ctx, r, newStore(t), "127.0.0.1:1/x:1", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// pipeWith makes a pipe and writes data into it once. With nil data, the pipe has no writer.
func pipeWith(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if data == nil {
		return
	}
	go func() {
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, _ = f.Write(data)
			f.Close()
		}
	}()
}
