package integration

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	snapshotssuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// suiteVariable tells a child process of this test binary which suite to run. The suites run in a child because a subtest that
// fails can't be forgiven in the same process, and those in testdata/known-failures.txt are.
const suiteVariable = "TANK_TEST_SUITE"

// fewest is how many subtests of each suite of containerd 2.4.2 have to run, so that a suite that skips shows.
var fewest = map[string]int{"snapshots": 21, "content": 12}

// TestSuites runs containerd's own conformance suites against a real daemon's socket, with containerd's proxy clients.
func TestSuites(t *testing.T) {
	if os.Getenv(suiteVariable) != "" {
		t.Skip("the child runs TestSuiteChild only")
	}
	for _, suite := range []string{"snapshots", "content"} {
		t.Run(suite, func(t *testing.T) {
			e := New(t)
			known := knownFailures(t)
			cmd := exec.Command(os.Args[0], "-test.run=^TestSuiteChild$", "-test.v", "-test.root", "-test.timeout=5m")
			cmd.Env = append(os.Environ(), suiteVariable+"="+suite, "TMPDIR="+e.Path("tmp"))
			out, err := cmd.CombinedOutput()
			results := suiteResults(string(out))
			ran := 0
			for name, result := range results {
				reason, listed := known[name]
				switch {
				case result == "PASS" && listed:
					t.Errorf("%s passes and is on the list of known failures: take it off", name)
				case result == "FAIL" && !listed:
					t.Errorf("%s fails", name)
				case result == "FAIL":
					t.Logf("%s fails, as known: %s", name, reason)
				case result == "SKIP":
					t.Logf("%s was skipped", name)
				}
				if result != "SKIP" {
					ran++
				}
			}
			if ran < fewest[suite] {
				t.Errorf("%d subtests ran, not %d: %v", ran, fewest[suite], err)
			}
			if t.Failed() {
				t.Logf("the suite's output:\n%s", out)
			}
		})
	}
}

var resultLine = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): TestSuiteChild/(\S+)`)

// suiteResults maps suite/subtest to its result; the suite itself is left out.
func suiteResults(out string) map[string]string {
	results := map[string]string{}
	for _, m := range resultLine.FindAllStringSubmatch(out, -1) {
		if strings.Contains(m[2], "/") {
			results[m[2]] = m[1]
		}
	}
	return results
}

// neverKnown are the cases that may not be on the list.
var neverKnown = regexp.MustCompile(`(?i)basic|remove|walk|view|holder|adopt`)

// knownFailures reads the list: a test's name and, after it, the reason.
func knownFailures(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/known-failures.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " ")
		if strings.TrimSpace(reason) == "" {
			t.Errorf("known-failures.txt: %s has no reason", name)
		}
		if neverKnown.MatchString(name) {
			t.Errorf("known-failures.txt: %s may not be on the list", name)
		}
		known[name] = strings.TrimSpace(reason)
	}
	return known
}

// TestSuiteChild runs one suite; each of its cases gets a daemon with an empty root.
func TestSuiteChild(t *testing.T) {
	suite := os.Getenv(suiteVariable)
	if suite == "" {
		t.Skip("is run by TestSuites")
	}
	e := New(t)
	dial := func() (*grpc.ClientConn, func() error, error) {
		k := e.NewTank()
		d := k.Serve()
		conn, err := grpc.NewClient("unix://"+k.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20))) // as containerd's
		if err != nil {
			return nil, nil, err
		}
		return conn, func() error {
			err := conn.Close()
			d.Stop()
			return err
		}, nil
	}
	t.Run(suite, func(t *testing.T) {
		switch suite {
		case "snapshots":
			snapshotssuite.SnapshotterSuite(t, "overlayfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
				conn, done, err := dial()
				if err != nil {
					return nil, nil, err
				}
				return snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank"), done, nil
			})
		case "content":
			contentsuite.ContentSuite(t, "tank", func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
				conn, done, err := dial()
				if err != nil {
					return nil, nil, nil, err
				}
				ctx = namespaces.WithNamespace(ctx, "testsuite")
				return ctx, contentproxy.NewContentStore(contentapi.NewContentClient(conn)), done, nil
			})
		default:
			t.Fatal(fmt.Errorf("no suite %q", suite))
		}
	})
}
