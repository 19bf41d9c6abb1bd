package auth

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestHelperHangs checks that a helper which does not answer is killed.
func TestHelperHangs(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nexec sleep 60\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-hangs"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	_, found, err := runHelper(t.Context(), "hangs", "h", 50*time.Millisecond)
	want := "docker-credential-hangs: no answer within 50ms"
	if found || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, %v", found, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := runHelper(ctx, "hangs", "h", time.Minute); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestDockerConfigIsBounded checks that a config.json may be a pipe, and that reading it has a
// limit.
func TestDockerConfigIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipeWith(t, dir+"/pipe", []byte(`{"auths":{"h":{"username":"u","password":"p"}}}`))
	if c, err := DockerConfig(dir+"/pipe")(t.Context(), "h"); err != nil || c.Username != "u" {
		t.Errorf("pipe: %v, %v", c, err)
	}
	if err := errors.Join(os.WriteFile(dir+"/huge", nil, 0o600), os.Truncate(dir+"/huge", 1<<40)); err != nil {
		t.Fatal(err)
	}
	pipeWith(t, dir+"/silent", nil)
	for _, name := range []string{dir + "/huge", "/dev/zero"} {
		if _, err := DockerConfig(name)(t.Context(), "h"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := DockerConfig(dir+"/silent")(ctx, "h"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
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
