package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// stallVariable is how long the disk stands still.
	stallVariable = "TANK_TEST_STALL"
	// answered is within what Tank answers each call.
	answered = 5 * time.Second
	// watchdogTime is the watchdog's interval in the test.
	watchdogTime = 12 * time.Second
)

// recordedStall is how long the disk has to stand still for a run that is recorded.
const recordedStall = 10 * time.Minute

// stallTime is how long the disk stands still.
func stallTime(t *testing.T) time.Duration {
	v := os.Getenv(stallVariable)
	if v == "" {
		return 12 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("%s: %v", stallVariable, err)
	}
	return d
}

// TestStalledDisk: while the disk below the root stands still, every call of containerd's services is
// answered within 5 seconds, and those that need no disk succeed. The watchdog is told that the daemon
// works. Afterwards everything works, without a restart.
func TestStalledDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testStalledDisk(t, kind)
		})
	}
}

func testStalledDisk(t *testing.T, kind string) {
	e := New(t)
	began := time.Now()
	defer func() {
		if !t.Skipped() && stallTime(t) >= recordedStall {
			r := Run{Proof: "stall", Count: 1, FS: kind}
			if t.Failed() {
				r.Failures = 1
			}
			Record(t, r, began)
		}
	}()
	disk := e.NewStallDisk(t, kind)
	k := e.NewTank()
	k.Root = filepath.Join(disk.Dir, "root")
	manager := newManager(t, e)
	k.Env = []string{"NOTIFY_SOCKET=" + manager.path, fmt.Sprintf("WATCHDOG_USEC=%d", watchdogTime.Microseconds())}
	daemon := k.Serve()
	t.Cleanup(func() {
		disk.Resume()
		daemon.Stop()
	})
	c := newStallClient(t, k.Socket)
	c.prepare()
	if err := c.round(false); err != nil {
		t.Fatalf("before the disk stands still: %v", err)
	}

	disk.Stall()
	manager.forget()
	stalled := time.Now()
	var clients sync.WaitGroup
	for n := range 8 {
		clients.Go(func() {
			for time.Since(stalled) < stallTime(t) {
				c.as(n).round(true)
			}
		})
	}
	clients.Wait()
	t.Logf("%s: answers while the disk stood still for %s:\n%s", kind, time.Since(stalled).Round(time.Second), c)
	manager.check(t)
	if n := threads(t, daemon); n > 3000 {
		t.Errorf("%d threads", n)
	}
	disk.Resume()
	resumed := time.Now()
	Eventually(t, time.Minute, "everything works again", func() bool { return c.as(99).round(false) == nil })
	t.Logf("everything worked after %s", time.Since(resumed).Round(time.Second))
	if !daemon.Running() {
		t.Error("the daemon ended")
	}
	c.check()
	Eventually(t, time.Minute, "nothing is left that nobody asked for", func() bool { return len(c.strangers()) == 0 })
}

// threads counts the threads of a process.
func threads(t *testing.T, p *Process) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// manager is a service manager that records when it hears of the watchdog.
type manager struct {
	path string
	mu   sync.Mutex // guards heard
	at   []time.Time
}

func newManager(t *testing.T, e *Env) *manager {
	m := &manager{path: e.Path("notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if strings.Contains(string(b[:n]), "WATCHDOG=1") {
				m.mu.Lock()
				m.at = append(m.at, time.Now())
				m.mu.Unlock()
			}
		}
	}()
	return m
}

func (m *manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at = []time.Time{time.Now()}
}

// check fails the test if systemd would have killed the daemon since forget.
func (m *manager) check(t *testing.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, at := range append(m.at, time.Now())[1:] {
		if gap := at.Sub(m.at[i]); gap > watchdogTime {
			t.Errorf("no WATCHDOG=1 for %s", gap)
		}
	}
}

// stallClient makes every call of containerd's services, and records how long each took.
type stallClient struct {
	t         *testing.T
	ctx       context.Context
	conn      *grpc.ClientConn
	blobs     content.Store
	snapshots snapshots.Snapshotter
	differ    diff.Applier
	name      string // makes the keys of one client its own

	layer  ocispec.Descriptor // a layer's blob that is in the store
	diffID digest.Digest

	calls *calls
}

// calls are the answers by method.
type calls struct {
	mu      sync.Mutex // guards the maps
	answers map[string]map[string]int
	longest map[string]time.Duration
}

func newStallClient(t *testing.T, socket string) *stallClient {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &stallClient{
		t: t, ctx: namespaces.WithNamespace(context.Background(), "stall"), conn: conn, name: "c",
		blobs:     contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		snapshots: snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank"),
		differ:    diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Applier),
		calls:     &calls{answers: map[string]map[string]int{}, longest: map[string]time.Duration{}},
	}
}

// as is another client on the same connection.
func (c *stallClient) as(n int) *stallClient {
	other := *c
	other.name = fmt.Sprintf("c%d-%s", n, randomHex(4))
	return &other
}

// prepare makes what the calls need: a blob, a committed snapshot and an active one.
func (c *stallClient) prepare() {
	c.t.Helper()
	img, err := BuildImage([][]Entry{{file("hello", 0o644, "hello\n")}}, ocispec.ImageConfig{})
	if err != nil {
		c.t.Fatal(err)
	}
	c.layer, c.diffID = img.Layers[0], img.DiffIDs[0]
	blob := img.Blobs[c.layer.Digest]
	must := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	must(content.WriteBlob(c.ctx, c.blobs, "layer", bytes.NewReader(blob), c.layer))
	mounts, err := c.snapshots.Prepare(c.ctx, "extract", "")
	must(err)
	_, err = c.differ.Apply(c.ctx, c.layer, mounts)
	must(err)
	must(c.snapshots.Commit(c.ctx, "base", "extract"))
	_, err = c.snapshots.Prepare(c.ctx, "active", "base")
	must(err)
}

// noDisk are the calls that have to succeed while the disk stands still.
var noDisk = []string{"Stat", "Mounts", "List", "Info", "List of blobs", "Stat of nothing", "health"}

// round makes each call once, all at once if the disk stands still. It returns the errors.
func (c *stallClient) round(stalled bool) error {
	own := func(s string) string { return s + "/" + c.name }
	data := []byte(own("some bytes"))
	ignore := func(_ any, err error) error { return err }
	// each makes one call of Tank, which has to be answered in time.
	each := func(name string, call func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
		defer cancel()
		began := time.Now()
		err := call(ctx)
		took := time.Since(began)
		c.calls.note(name, took, err)
		if took > answered {
			c.t.Errorf("%s: answered after %s: %v", name, took, err)
		}
		if stalled && err != nil && slices.Contains(noDisk, name) {
			c.t.Errorf("%s: needs no disk: %v", name, err)
		}
		return err
	}
	prepare := func(key, parent string) (mounts []mount.Mount, err error) {
		err = each("Prepare", func(ctx context.Context) (err error) {
			mounts, err = c.snapshots.Prepare(ctx, key, parent)
			return err
		})
		return mounts, err
	}
	remove := func(key string) error {
		return each("Remove", func(ctx context.Context) error { return c.snapshots.Remove(ctx, key) })
	}
	// write writes an ingest and leaves its writer open.
	write := func(opts ...content.WriterOpt) (w content.Writer, err error) {
		if err = each("Writer", func(context.Context) (err error) {
			w, err = c.blobs.Writer(c.ctx, opts...) // its stream lasts
			return err
		}); err != nil {
			return nil, err
		}
		if err = each("Write", func(context.Context) error { return ignore(w.Write(data)) }); err != nil {
			w.Close()
		}
		return w, err
	}
	calls := []func() error{
		func() error {
			return each("Stat", func(ctx context.Context) error { return ignore(c.snapshots.Stat(ctx, "active")) })
		},
		func() error {
			return each("Mounts", func(ctx context.Context) error { return ignore(c.snapshots.Mounts(ctx, "active")) })
		},
		func() error {
			return each("List", func(ctx context.Context) error {
				return c.snapshots.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
			})
		},
		func() error {
			return each("Stat of nothing", func(ctx context.Context) error {
				return notFound(ignore(c.snapshots.Stat(ctx, own("nothing"))))
			})
		},
		func() error {
			return each("Usage", func(ctx context.Context) error { return ignore(c.snapshots.Usage(ctx, "active")) })
		},
		func() error {
			return each("Update", func(ctx context.Context) error {
				in := snapshots.Info{Name: "base", Labels: map[string]string{"l": c.name}}
				return ignore(c.snapshots.Update(ctx, in, "labels.l"))
			})
		},
		func() error {
			if _, err := prepare(own("p"), "base"); err != nil {
				return err
			}
			if err := each("Commit", func(ctx context.Context) error {
				return c.snapshots.Commit(ctx, own("n"), own("p"))
			}); err != nil {
				return err
			}
			return remove(own("n"))
		},
		func() error {
			if err := each("View", func(ctx context.Context) error {
				return ignore(c.snapshots.View(ctx, own("v"), "base"))
			}); err != nil {
				return err
			}
			return remove(own("v"))
		},
		func() error {
			return each("Cleanup",
				func(ctx context.Context) error { return c.snapshots.(snapshots.Cleaner).Cleanup(ctx) })
		},
		func() error {
			mounts, err := prepare(own("x"), "")
			if err != nil {
				return err
			}
			err = each("Apply", func(ctx context.Context) error { return ignore(c.differ.Apply(ctx, c.layer, mounts)) })
			return errors.Join(err, remove(own("x")))
		},
		func() error {
			return each("Info", func(ctx context.Context) error { return ignore(c.blobs.Info(ctx, c.layer.Digest)) })
		},
		func() error {
			return each("List of blobs", func(ctx context.Context) error {
				return c.blobs.Walk(ctx, func(content.Info) error { return nil })
			})
		},
		func() error {
			return each("Update of a blob", func(ctx context.Context) error {
				in := content.Info{Digest: c.layer.Digest, Labels: map[string]string{"l": c.name}}
				return ignore(c.blobs.Update(ctx, in, "labels.l"))
			})
		},
		func() error {
			return each("Status", func(ctx context.Context) error {
				return notFound(ignore(c.blobs.Status(ctx, own("none"))))
			})
		},
		func() error {
			return each("ListStatuses", func(ctx context.Context) error { return ignore(c.blobs.ListStatuses(ctx)) })
		},
		func() error {
			return each("Read", func(ctx context.Context) error {
				r, err := c.blobs.ReaderAt(ctx, c.layer)
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = io.Copy(io.Discard, content.NewReader(r))
				return err
			})
		},
		func() error {
			d := digest.FromBytes(data)
			w, err := write(content.WithRef(own("w")),
				content.WithDescriptor(ocispec.Descriptor{Digest: d, Size: int64(len(data))}))
			if err != nil {
				return err
			}
			defer w.Close()
			if err := each("Commit of a blob", func(ctx context.Context) error {
				return w.Commit(ctx, int64(len(data)), d)
			}); err != nil {
				return err
			}
			return each("Delete", func(ctx context.Context) error { return c.blobs.Delete(ctx, d) })
		},
		func() error {
			w, err := write(content.WithRef(own("a")))
			if err != nil {
				return err
			}
			w.Close()
			return each("Abort", func(ctx context.Context) error { return c.blobs.Abort(ctx, own("a")) })
		},
		func() error {
			return each("health", func(ctx context.Context) error {
				return ignore(healthapi.NewHealthClient(c.conn).Check(ctx, &healthapi.HealthCheckRequest{}))
			})
		},
	}
	errs := make([]error, len(calls))
	var running sync.WaitGroup
	for i, call := range calls {
		if !stalled {
			errs[i] = call()
			continue
		}
		running.Go(func() { errs[i] = call() })
	}
	running.Wait()
	return errors.Join(errs...)
}

// notFound returns nil for an errdefs.ErrNotFound.
func notFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("not ErrNotFound: %w", err)
}

func (l *calls) note(name string, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.answers[name] == nil {
		l.answers[name] = map[string]int{}
	}
	class := "ok"
	switch {
	case errdefs.IsUnavailable(err):
		class = "unavailable"
	case err != nil:
		class = err.Error()
	}
	l.answers[name][class]++
	l.longest[name] = max(l.longest[name], took)
}

// String lists the answers of each call.
func (c *stallClient) String() string {
	c.calls.mu.Lock()
	defer c.calls.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.calls.answers)) {
		fmt.Fprintf(&b, "%-24s %6.2fs  %v\n", name, c.calls.longest[name].Seconds(), c.calls.answers[name])
	}
	return b.String()
}

// check looks at what was made before the disk stood still.
func (c *stallClient) check() {
	c.t.Helper()
	r, err := c.blobs.ReaderAt(c.ctx, c.layer)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	if d, err := digest.FromReader(content.NewReader(r)); err != nil || d != c.layer.Digest {
		c.t.Errorf("the blob reads as %s: %v", d, err)
	}
}

// strangers are the snapshots that no caller was told of.
func (c *stallClient) strangers() (keys []string) {
	err := c.snapshots.Walk(c.ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Name != "base" && i.Name != "active" {
			keys = append(keys, i.Name)
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
	return keys
}
