package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/plugin/admin"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// program returns the path of the real binary, because the test binary initializes the dependencies of the
// tests, too. It is $TANK_BINARY, else a new build.
func program(tb testing.TB) string {
	tb.Helper()
	if path := os.Getenv("TANK_BINARY"); path != "" {
		return path
	}
	path := filepath.Join(tb.TempDir(), "tank-snapshotter")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", tags(tb), "-ldflags", "-s -w",
		"-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return path
}

// tags returns the build tags of the Makefile.
func tags(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":="); ok && strings.TrimSpace(name) == "TAGS" {
			return strings.TrimSpace(value)
		}
	}
	tb.Fatal("the Makefile has no TAGS")
	return ""
}

// TestStartIsLean: the packages allocate little memory when the program starts, because most of the time of a
// start, and of a pull of a cached image, is spent on page faults. Most expensive are regular expressions and
// message descriptors that packages initialize and the program does not use.
func TestStartIsLean(t *testing.T) {
	const most = 1150 << 10 // bytes; 1,040 KiB with go1.26, of which 160 are gRPC's reflection
	cmd := exec.Command(program(t), "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	total, seen := 0, 0
	for line := range strings.Lines(string(out)) {
		var name string
		var at, clock float64
		var bytes int
		if _, err := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes", &name, &at, &clock, &bytes); err != nil {
			continue
		}
		seen++
		total += bytes
		switch name {
		case "golang.org/x/net/trace", "html/template":
			t.Errorf("%s is initialized", name)
		}
	}
	if seen < 20 || total > most {
		t.Errorf("%d packages allocate %d bytes when the program starts, want at most %d", seen, total, most)
	}
}

// repeatedPulls has a root with an image, and the commands with which a user asks for the image again.
type repeatedPulls struct {
	registry *registrytest.Registry
	rows     []repeatedCommand
}

// repeatedCommand is one command, with the number of requests that it sends to the registry.
type repeatedCommand struct {
	name     string
	argv     []string
	want     string // on stdout, unless empty
	requests int
}

// pullAgain pulls an image into a new root, and returns commands that use that root: through a daemon if
// daemon is true, else alone.
func pullAgain(tb testing.TB, program string, daemon bool) repeatedPulls {
	tb.Helper()
	a := repeatedPulls{registry: registrytest.New(tb)}
	layer := a.registry.Blob(ocispec.MediaTypeImageLayer, greeting(tb))
	a.registry.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{layer}, []digest.Digest{layer.Digest})
	root := filepath.Join(tb.TempDir(), "root")
	if daemon {
		serveProgram(tb, program, root)
	}
	pull := []string{program, "--root", root, "pull", "--progress", "none"}
	ref := a.registry.Host + "/hello:1"
	path, _ := timed(tb, append(pull, ref))
	a.rows = []repeatedCommand{
		{"version", []string{program, "version"}, "", 0},
		{"offline", append(slices.Clone(pull), "--offline", ref), path, 0},
		{"unchanged", append(slices.Clone(pull), ref), path, 1},
	}
	return a
}

// run runs the commands in turn and returns their times in ascending order.
func (a repeatedPulls) run(tb testing.TB, rounds int) map[string][]time.Duration {
	tb.Helper()
	took := map[string][]time.Duration{}
	for range rounds {
		for _, row := range a.rows {
			before := len(a.registry.Requests())
			out, d := timed(tb, row.argv)
			if row.want != "" && out != row.want {
				tb.Fatalf("%s: printed %q, not %q", row.name, out, row.want)
			}
			if asked := a.registry.Requests()[before:]; len(asked) != row.requests {
				tb.Fatalf("%s: %d requests, want %d: %q", row.name, len(asked), row.requests, asked)
			}
			took[row.name] = append(took[row.name], d)
		}
	}
	for _, d := range took {
		slices.Sort(d)
	}
	return took
}

// timed runs a command and returns its stdout and the time from its start to its exit.
func timed(tb testing.TB, argv []string) (string, time.Duration) {
	tb.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		tb.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return stdout.String(), took
}

// serveProgram runs a daemon for the root until the end of the test.
func serveProgram(tb testing.TB, program, root string) {
	tb.Helper()
	dir := tb.TempDir()
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(program, "serve", "--config", config, "--root", root, "--address", filepath.Join(dir, "d.sock"))
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			tb.Errorf("serve: %v: %s", err, stderr.String())
		}
	})
	for deadline := time.Now().Add(patienceOfTests); ; time.Sleep(10 * time.Millisecond) {
		if c, err := admin.Dial(tb.Context(), filepath.Join(root, admin.SocketName), nil); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal("serve does not answer")
		}
	}
}

// TestAgainIsQuick measures commands that pull a cached image. Offline, such a command sends no request and
// takes little longer than the start of the program. Otherwise it sends one request, to see that the tag has
// not moved.
func TestAgainIsQuick(t *testing.T) {
	const rounds, offline, unchanged = 20, 10 * time.Millisecond, 20 * time.Millisecond
	binary := program(t)
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			a := pullAgain(t, binary, daemon)
			for attempt := 1; ; attempt++ { // a busy machine slows down the two commands unevenly
				took := a.run(t, rounds)
				start := took["version"][rounds/2]
				over := func(name string) time.Duration { return took[name][rounds/2] - start }
				if over("offline") <= offline && over("unchanged") <= unchanged {
					return
				}
				if attempt == 5 {
					t.Fatalf("beyond the %s of a start: %s offline, want %s; %s unchanged, want %s",
						start, over("offline"), offline, over("unchanged"), unchanged)
				}
			}
		})
	}
}

// BenchmarkCommand measures commands from their start to their exit.
func BenchmarkCommand(b *testing.B) {
	binary := program(b)
	for _, daemon := range []bool{false, true} {
		b.Run(fmt.Sprintf("daemon=%v", daemon), func(b *testing.B) {
			a := pullAgain(b, binary, daemon)
			for _, row := range a.rows {
				b.Run(row.name, func(b *testing.B) {
					var took []time.Duration
					for b.Loop() {
						_, d := timed(b, row.argv)
						took = append(took, d)
					}
					slices.Sort(took)
					b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
					b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
				})
			}
		})
	}
}
