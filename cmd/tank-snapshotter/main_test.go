package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tank-snapshotter": main})
}

func TestScripts(t *testing.T) {
	reg, layer, slow, held, release := registry(t)
	testscript.Run(t, testscript.Params{
		Setup: func(env *testscript.Env) error {
			env.Setenv("REGISTRY", reg.Host)
			env.Setenv("LAYER", layer.Encoded())
			env.Setenv("SLOW", slow.Encoded())
			env.Setenv("HELD", held.Encoded())
			env.Setenv("STUCK", digest.FromBytes(append(greeting(t), 0, 0, 0, 0)).Encoded())
			return nil
		},
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"await":   await,
			"normal":  normal,
			"release": func(*testscript.TestScript, bool, []string) { release() },
			"requests": func(ts *testscript.TestScript, _ bool, args []string) {
				for range 1000 {
					if fmt.Sprint(reg.Count(args[1])) == args[0] {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				ts.Fatalf("%d requests for %s, want %s", reg.Count(args[1]), args[1], args[0])
			},
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "userns":
				return userns.RunningInUserNS(), nil
			case "uid0":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// registry starts a registry with these images: hello:1, which is valid; hello:lie, with a layer that does
// not match its digest; hello:slow, with a layer that comes after release was called; hello:held and
// hello:stuck, with layers that never come. The repository secret refuses all access, public requires an
// anonymous token, and private a password.
func registry(t *testing.T) (reg *registrytest.Registry, layer, slowLayer, heldLayer digest.Digest, release func()) {
	t.Helper()
	raw := greeting(t)
	reg = registrytest.New(t)
	image := func(tag string, data []byte) ocispec.Descriptor {
		l := reg.Blob(ocispec.MediaTypeImageLayer, data)
		reg.Image(tag, platforms.DefaultSpec(), []ocispec.Descriptor{l}, []digest.Digest{l.Digest})
		return l
	}
	right := image("1", raw)
	lie := image("lie", append(bytes.Clone(raw), 0))
	slow := image("slow", append(bytes.Clone(raw), 0, 0))
	held := image("held", append(bytes.Clone(raw), 0, 0, 0))
	stuck := image("stuck", append(bytes.Clone(raw), 0, 0, 0, 0))
	released := make(chan struct{})
	reg.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/secret/"):
			w.WriteHeader(http.StatusForbidden)
			return true
		case strings.HasPrefix(r.URL.Path, "/v2/public/") && r.Header.Get("Authorization") != "Bearer t":
			challenge := fmt.Sprintf("Bearer realm=%q", "http://"+r.Host+"/token")
			return registrytest.Answer(http.StatusUnauthorized, nil, "WWW-Authenticate", challenge)(w, r)
		case r.URL.Path == "/token":
			return registrytest.Answer(http.StatusOK, []byte(`{"token":"t"}`))(w, r)
		case strings.HasPrefix(r.URL.Path, "/v2/private/"):
			return registrytest.Basic("alice", "hush")(w, r)
		case strings.HasSuffix(r.URL.Path, lie.Digest.String()):
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(lie.Size)))
			return true
		case strings.HasSuffix(r.URL.Path, slow.Digest.String()):
			select {
			case <-released:
			case <-r.Context().Done():
			}
		case strings.HasSuffix(r.URL.Path, held.Digest.String()), strings.HasSuffix(r.URL.Path, stuck.Digest.String()):
			<-r.Context().Done()
		}
		return false
	})
	return reg, right.Digest, slow.Digest, held.Digest, sync.OnceFunc(func() { close(released) })
}

// greeting returns a layer with one file.
func greeting(tb testing.TB) []byte {
	tb.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	if err := w.WriteHeader(&tar.Header{Name: "greeting", Mode: 0o644, Size: 6}); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write([]byte("hello\n")); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return raw.Bytes()
}

// exits is the script command `exits CODE PROGRAM ARG...`: it runs a program and compares the exit code.
// testscript's own exec only distinguishes zero from other codes.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("%s: exit code %d, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}

// await is the script command `await FILE`: it waits until the file exists.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	for range 1000 {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s does not appear", args[0])
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{context.Canceled, 1},
		{fmt.Errorf("x: %w", errdefs.ErrInternal), 1},
		{localError{errdefs.ErrUnavailable}, 1},
		{usageError{errors.New("x")}, 2},
		{usageError{errdefs.ErrNotFound}, 2},
		{fmt.Errorf("x: %w", errdefs.ErrInvalidArgument), 2},
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), 3},
		{errors.Join(nil, fmt.Errorf("x: %w", errdefs.ErrNotFound)), 3},
		{fmt.Errorf("x: %w", errdefs.ErrPermissionDenied), 4},
		{fmt.Errorf("x: %w", errdefs.ErrUnauthenticated), 4},
		{&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}, 1},
		{fmt.Errorf("tar entry: owner: %w", unix.EPERM), 1},
		{fmt.Errorf("x: %w", errdefs.ErrUnavailable), 5},
		{context.DeadlineExceeded, 5},
		{fmt.Errorf("x: %w", errdefs.ErrDataLoss), 6},
		{fmt.Errorf("x: %w", errdefs.ErrFailedPrecondition), 6},
		{fmt.Errorf("%w: %w", errdefs.ErrUnavailable, errdefs.ErrDataLoss), 6},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
		if strings.Contains(hintFor(tc.err), "docker login") { // no registry has refused anything
			t.Errorf("%v: hint %q", tc.err, hintFor(tc.err))
		}
	}
}

// TestUsageHint: the mark of a usage error changes the exit code, and not the advice of the cause below it.
func TestUsageHint(t *testing.T) {
	denied := &os.PathError{Op: "open", Path: "hosts.toml", Err: unix.EACCES}
	marked := cause.Mark(fmt.Errorf("hosts directory: %w: %w", denied, errdefs.ErrInvalidArgument), cause.Usage, "")
	for _, tc := range []struct {
		err  error
		hint string
	}{
		{fmt.Errorf("x: %w", marked), cause.Cause{Kind: cause.Denied}.Hint()},
		{cause.Mark(errors.New("x"), cause.Usage, ""), ""},
	} {
		if code, hint := exitCode(tc.err), hintFor(tc.err); code != exitUsage || hint != tc.hint {
			t.Errorf("%v: exit code %d, hint %q, want hint %q", tc.err, code, hint, tc.hint)
		}
	}
}

// TestDefaultConfig: the output of `config default` has every key, and the defaults are those of the program.
func TestDefaultConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(defaultConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readSettings(t.Context(), filepath.Join(t.TempDir(), "none"), file)
	want := settings{Root: defaultRoot, Address: defaultAddress, Mode: modeOverlay, LogLevel: "info",
		HostsDir: defaultHosts}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name := range toMap(t, settings{}) {
		if !strings.Contains(defaultConfig, "\n"+name+" = ") {
			t.Errorf("key %s is not documented", name)
		}
	}
	if err := os.WriteFile(file, []byte("nonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = readSettings(t.Context(), file)
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("unknown key: %v", err)
	}
}

func toMap(t *testing.T, v any) map[string]any {
	t.Helper()
	data, err := toml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := toml.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestCodesAreDocumented: README and the program's help list the exit codes that causes have, and no others.
func TestCodesAreDocumented(t *testing.T) {
	codes := map[string]bool{"0": true, "130": true, "143": true}
	for _, kind := range cause.Kinds() {
		code, _ := cause.Cause{Kind: kind}.Exit()
		codes[fmt.Sprint(code)] = true
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for where, found := range map[string][][]string{
		"README.md": regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(string(readme), -1),
		"--help":    regexp.MustCompile(`(?m)^  (\d+) `).FindAllStringSubmatch(exitCodes, -1),
	} {
		listed := map[string]bool{}
		for _, m := range found {
			listed[m[1]] = true
		}
		if !maps.Equal(listed, codes) {
			t.Errorf("%s lists %v, want %v", where, listed, codes)
		}
	}
}
