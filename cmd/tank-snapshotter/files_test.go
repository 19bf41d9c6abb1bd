package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFilesOfTheUser: the program reads files of every type that the user names, with limits of size and time.
func TestFilesOfTheUser(t *testing.T) {
	t.Parallel()
	reg, _, _, _, _ := registry(t)
	kinds := map[string]func(path, text string) error{
		"a file": func(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) },
		"a pipe": func(path, text string) error {
			err := unix.Mkfifo(path, 0o600)
			go func() {
				if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					_, _ = f.WriteString(text)
					f.Close()
				}
			}()
			return err
		},
		"a pipe without a writer": func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"of a terabyte": func(path, _ string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
		"without an end": func(path, _ string) error { return os.Symlink("/dev/zero", path) },
	}
	for what, tt := range map[string]struct {
		text string
		args func(dir, file string) []string
		name string
	}{
		"the config": {"log_level = \"info\"\n", func(dir, file string) []string {
			return []string{"pull", "--root", dir + "/root", "--config", file, "--progress", "none",
				reg.Host + "/hello:1"}
		}, "config.toml"},
		"containerd's config": {"version = 3\n", func(_, file string) []string {
			return []string{"config", "check", file}
		}, "c.toml"},
		"hosts.toml": {"server = \"http://" + reg.Host + "\"\n", func(dir, _ string) []string {
			return []string{"pull", "--root", dir + "/root", "--hosts-dir", dir, "--progress", "none",
				reg.Host + "/hello:1"}
		}, "_default/hosts.toml"},
		"a certificate": {"", func(dir, _ string) []string {
			return []string{"pull", "--root", dir + "/root", "--hosts-dir", dir, "--progress", "none",
				reg.Host + "/hello:1"}
		}, "_default/x.crt"},
	} {
		for kind, make := range kinds {
			if kind == "a pipe without a writer" && what != "the config" && what != "hosts.toml" {
				continue // it takes five seconds
			}
			t.Run(what+", "+kind, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				file := filepath.Join(dir, tt.name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), make(file, tt.text)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				out, stderr, code := output(t, tt.args(dir, file)...)
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("it took %s", took)
				}
				readable := (kind == "a file" || kind == "a pipe") && what != "a certificate"
				if what == "containerd's config" {
					if readable != strings.Contains(out, "No proxy plugin of type snapshot") {
						t.Errorf("%s%s", out, stderr)
					}
				} else if (code == exitOK) != readable || strings.Contains(stderr, "goroutine ") {
					t.Errorf("exit code %d: %s", code, stderr)
				}
			})
		}
	}
}
