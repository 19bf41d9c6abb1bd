package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeService is a service without a root. Remove panics.
type fakeService struct{ root string }

func (a fakeService) Root() string { return a.root }

func (a fakeService) Pull(ctx context.Context, ref string, opts *tank.PullOptions) (*tank.Image, error) {
	if ref == "none" {
		return nil, fmt.Errorf("image none: %w", errdefs.ErrNotFound)
	}
	cred, err := opts.Credentials(ctx, "docker.io")
	if err != nil {
		return nil, err
	}
	opts.Log("pulling " + ref + " as " + cred.Username)
	opts.Progress(tank.Event{Digest: digest.FromString("layer"), Offset: 3, Total: 4})
	d := digest.FromString(ref)
	return &tank.Image{Ref: ref, Digest: d, Manifest: d, Config: []byte(`{"a": 1}`)}, nil
}

func (a fakeService) Images(context.Context) ([]tank.ImageInfo, error) {
	return []tank.ImageInfo{{Ref: "x"}}, nil
}

func (a fakeService) Inspect(_ context.Context, ref string) (*tank.ImageDetails, error) {
	return &tank.ImageDetails{Ref: ref, Platforms: []tank.PlatformDetails{{Config: []byte(`{"a":1}`)}}}, nil
}

func (a fakeService) Remove(context.Context, string) error { panic("hostile") }

func (a fakeService) GC(context.Context) (tank.Reclaimed, error) {
	return tank.Reclaimed{Blobs: 3}, nil
}

func (a fakeService) Check(_ context.Context, report func(tank.Fault)) error {
	report(tank.Fault{What: "blob", Name: "x", Message: "blob x: missing"})
	return nil
}

func (a fakeService) Repair(ctx context.Context, opts *tank.RepairOptions) (*tank.RepairResult, error) {
	cred := tank.Credential{Username: "nobody"}
	if !opts.Offline {
		var err error
		if cred, err = opts.Credentials(ctx, "docker.io"); err != nil {
			return nil, err
		}
	}
	opts.Log("repairing as " + cred.Username)
	opts.Progress(tank.Event{Digest: digest.FromString("layer"), Offset: 3, Total: 4})
	f := tank.Fault{What: "blob", Name: "x", Message: "blob x: missing"}
	return &tank.RepairResult{Mended: []tank.Fault{f}, Remains: []tank.Fault{}}, nil
}

func (a fakeService) Holders(context.Context) ([]tank.HolderInfo, error) {
	return []tank.HolderInfo{{Holder: "containerd", Blobs: 2, Exclusive: 7}}, nil
}

func (a fakeService) Release(_ context.Context, holder string, opts *tank.ReleaseOptions) (tank.HolderInfo, error) {
	if !opts.Force {
		return tank.HolderInfo{}, fmt.Errorf("holder %s: in use: %w", holder, errdefs.ErrFailedPrecondition)
	}
	return tank.HolderInfo{Holder: holder}, nil
}

func (a fakeService) Close() error { return nil }

// serve serves svc on a socket of its own, and returns the socket's path.
func serve(t *testing.T, svc tank.Service, opts *admin.ServeOptions) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tank.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- admin.Serve(ctx, l, svc, opts) }()
	t.Cleanup(func() {
		stop()
		must(t, <-served)
	})
	return path
}

// TestService shows that each method passes on its arguments and results, and errors with their
// classes.
func TestService(t *testing.T) {
	ctx := t.Context()
	c, err := admin.Dial(ctx, serve(t, fakeService{"/root"}, nil), nil)
	must(t, err)
	defer c.Close()
	if c.Root() != "/root" {
		t.Errorf("root %q", c.Root())
	}
	var mu sync.Mutex
	var lines []string
	var events []tank.Event
	opts := &tank.PullOptions{
		Log: func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		},
		Progress: func(e tank.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		},
		Credentials: func(_ context.Context, host string) (tank.Credential, error) {
			if host != "docker.io" {
				return tank.Credential{}, errors.New("nobody")
			}
			return tank.Credential{Username: "me", Password: "secret"}, nil
		},
	}
	img, err := c.Pull(ctx, "r", opts)
	must(t, err)
	if img.Ref != "r" || string(img.Config) != `{"a":1}` || len(lines) != 1 || lines[0] != "pulling r as me" {
		t.Errorf("image %+v, lines %q", img, lines)
	}
	if want := (tank.Event{Digest: digest.FromString("layer"), Offset: 3, Total: 4}); len(events) != 1 ||
		events[0] != want {
		t.Errorf("events %+v", events)
	}
	if _, err := c.Pull(ctx, "none", nil); !errdefs.IsNotFound(err) {
		t.Errorf("the error lost its class: %v", err)
	}
	if images, err := c.Images(ctx); err != nil || len(images) != 1 {
		t.Errorf("images %v, %v", images, err)
	}
	if d, err := c.Inspect(ctx, "x"); err != nil || d.Ref != "x" || string(d.Platforms[0].Config) != `{"a":1}` {
		t.Errorf("inspect %+v, %v", d, err)
	}
	if err := c.Remove(ctx, "x"); !errdefs.IsInternal(err) {
		t.Errorf("panic of the service: %v", err)
	}
	failing := func(context.Context, string) (tank.Credential, error) {
		return tank.Credential{}, errors.New("locked")
	}
	if _, err := c.Pull(ctx, "r", &tank.PullOptions{Credentials: failing}); !errdefs.IsUnauthorized(err) {
		t.Errorf("failing credential helper: %v", err)
	}
	if r, err := c.GC(ctx); err != nil || r.Blobs != 3 {
		t.Errorf("after the panic: %+v, %v", r, err)
	}
	var faults []tank.Fault
	must(t, c.Check(ctx, func(f tank.Fault) { faults = append(faults, f) }))
	if len(faults) != 1 || faults[0].Error() != "blob x: missing" || !errdefs.IsDataLoss(faults[0]) {
		t.Errorf("faults %+v", faults)
	}
	if hs, err := c.Holders(ctx); err != nil || len(hs) != 1 ||
		hs[0] != (tank.HolderInfo{Holder: "containerd", Blobs: 2, Exclusive: 7}) {
		t.Errorf("holders %+v, %v", hs, err)
	}
	if _, err := c.Release(ctx, "containerd", nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("release without force: %v", err)
	}
	if h, err := c.Release(ctx, "containerd", &tank.ReleaseOptions{Force: true}); err != nil ||
		h.Holder != "containerd" {
		t.Errorf("release %+v, %v", h, err)
	}
}

// jsonText is a codec that sends the given text unchanged.
type jsonText struct{}

func (jsonText) Marshal(v any) ([]byte, error) { return []byte(v.(string)), nil }
func (jsonText) Unmarshal(data []byte, v any) error {
	if s, ok := v.(*string); ok {
		*s = string(data)
	}
	return nil
}
func (jsonText) Name() string { return "tank-json" }

// raw connects to a socket without the package's client.
func raw(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestRequestsWithoutParts sends requests that lack some or all fields. None makes the server
// panic, except that Remove of the fake panics on purpose.
func TestRequestsWithoutParts(t *testing.T) {
	conn := raw(t, serve(t, fakeService{t.TempDir()}, nil))
	stream := &grpc.StreamDesc{StreamName: "Pull", ServerStreams: true, ClientStreams: true}
	for method, desc := range map[string]*grpc.StreamDesc{
		"Root": nil, "Images": nil, "Inspect": nil, "GC": nil, "Check": nil, "Holders": nil, "Release": nil,
		"Pull": stream,
	} {
		for _, text := range []string{"", "null", "{}", `{"request":null,"answer":{}}`, "[]", `"x"`} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			var err error
			if name := "/tank.admin.v1.Admin/" + method; desc == nil {
				err = conn.Invoke(ctx, name, text, new(any), grpc.ForceCodec(jsonText{}))
			} else {
				var s grpc.ClientStream
				if s, err = conn.NewStream(ctx, desc, name, grpc.ForceCodec(jsonText{})); err == nil {
					if err = s.SendMsg(text); err == nil {
						err = s.RecvMsg(new(any))
					}
				}
			}
			cancel()
			panicked := strings.Contains(status.Convert(err).Message(), "panic")
			if c := status.Code(err); c == codes.Unavailable || c == codes.DeadlineExceeded || panicked {
				t.Errorf("%s %q: %v", method, text, err)
			}
		}
	}
}
