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
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	snapshotssuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// suiteVariable is the environment variable with the suite that a child process of this test binary runs, as
// depth/suite/mode. The suites run in a child because a failed subtest always fails its own process, and the failures
// in testdata/known-failures.txt are accepted.
const suiteVariable = "TANK_TEST_SUITE"

// fewest is how many subtests of each suite of containerd 2.4.2 have to run, so that TestSuites fails if a suite
// skips them.
var fewest = map[string]int{"snapshots": 21, "content": 12}

// suites are the rows of TestSuites. With the depth socket, containerd's proxy clients call Tank's own socket; with the
// depth containerd, containerd's client calls a containerd that has Tank as a plugin. The content store does not depend
// on the mode, so its suite runs in one mode only.
var suites = []string{
	"socket/snapshots/overlay", "socket/snapshots/directory", "socket/content/overlay",
	"containerd/snapshots/overlay", "containerd/snapshots/directory", "containerd/content/overlay",
}

// TestSuites runs containerd's own conformance suites against a real daemon.
func TestSuites(t *testing.T) {
	if os.Getenv(suiteVariable) != "" {
		t.Skip("the child runs TestSuiteChild only")
	}
	known := knownFailures(t)
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			e := New(t)
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
			if _, rest, _ := strings.Cut(suite, "/"); ran < fewest[strings.Split(rest, "/")[0]] {
				t.Errorf("%d subtests ran: %v", ran, err)
			}
			if t.Failed() {
				t.Logf("the suite's output:\n%s", out)
			}
		})
	}
}

var resultLine = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): TestSuiteChild/(\S+)`)

// suiteResults maps each depth/suite/mode/case to its result, without the results of the tests above the cases.
func suiteResults(out string) map[string]string {
	results := map[string]string{}
	for _, m := range resultLine.FindAllStringSubmatch(out, -1) {
		if strings.Count(m[2], "/") == 3 {
			results[m[2]] = m[1]
		}
	}
	return results
}

// neverKnown matches the cases that may not be on the list of known failures.
var neverKnown = regexp.MustCompile(`(?i)/[^/]*(basic|remove|walk|view|holder|adopt)[^/]*$`)

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

// TestSuiteChild runs one suite.
func TestSuiteChild(t *testing.T) {
	name := os.Getenv(suiteVariable)
	if name == "" {
		t.Skip("TestSuites runs this test in a child process")
	}
	part := strings.Split(name, "/")
	setup := Setup{Directory: part[2] == "directory"}
	e := New(t)
	connect := func(context.Context) (stores, error) { return tankStores(e, setup) }
	if part[0] == "containerd" {
		_, c, _ := e.NewNodeAs(setup)
		connect = c.stores
	}
	t.Run(name, func(t *testing.T) {
		switch part[1] {
		case "snapshots":
			// The suite recognizes overlayfs by this name: there a rename of a directory behaves differently.
			snapshotter := map[bool]string{false: "overlayfs", true: "native"}[setup.Directory]
			snapshotssuite.SnapshotterSuite(t, snapshotter,
				func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
					s, err := connect(ctx)
					return s.snapshots, s.close, err
				})
		case "content":
			contentsuite.ContentSuite(t, "tank",
				func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
					s, err := connect(ctx)
					return namespaces.WithNamespace(ctx, "testsuite"), s.content, s.close, err
				})
		default:
			t.Fatal(fmt.Errorf("no suite %q", name))
		}
	})
}

// stores are what one case of a suite runs on.
type stores struct {
	snapshots snapshots.Snapshotter
	content   content.Store
	close     func() error
}

// tankStores starts a daemon with an empty root and connects to its socket.
func tankStores(e *Env, setup Setup) (stores, error) {
	k := e.NewTank()
	if setup.Directory {
		k.Config = directoryMode
	}
	d := k.Serve()
	conn, err := k.connect()
	return stores{
		snapshots: snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank"),
		content:   contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		close: func() error {
			err := conn.Close()
			d.Stop()
			return err
		},
	}, err
}

// connect opens a connection to the daemon's socket.
func (k *TankRoot) connect() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+k.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		// the limits of containerd's own client
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
}

// dial is connect for a connection that ends with the test.
func (k *TankRoot) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := k.connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// stores connects to containerd. All calls use one new namespace and a lease in it, whatever their contexts name: no
// case sees what another left, and containerd's collector removes nothing that a case still uses.
func (c *Containerd) stores(ctx context.Context) (stores, error) {
	own := func(ctx context.Context) context.Context { return ctx }
	cl, err := client.New(c.Socket, client.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
			invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
		) error {
			return invoke(own(ctx), method, req, reply, conn, opts...)
		}),
		grpc.WithStreamInterceptor(
			func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
				stream grpc.Streamer, opts ...grpc.CallOption,
			) (grpc.ClientStream, error) {
				return stream(own(ctx), desc, conn, method, opts...)
			}),
	}))
	if err != nil {
		return stores{}, err
	}
	namespace := "suite-" + randomHex(4)
	lease, err := cl.LeasesService().Create(namespaces.WithNamespace(ctx, namespace), leases.WithID("suite"))
	own = func(ctx context.Context) context.Context {
		return leases.WithLease(namespaces.WithNamespace(ctx, namespace), lease.ID)
	}
	return stores{cl.SnapshotService(c.Snapshotter), cl.ContentStore(), cl.Close}, err
}
