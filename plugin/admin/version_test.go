package admin_test

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/rpc"
	"github.com/tank-snapshotter/tank/plugin/admin"
)

// TestVersions shows which version a client and an owner with different ranges agree on, and that
// an error names both ranges.
func TestVersions(t *testing.T) {
	for name, tc := range map[string]struct {
		client, owner [2]int // the oldest and the latest version
		want          int    // 0: none
		text          string // of the error
	}{
		"equal":           {[2]int{1, 2}, [2]int{1, 2}, 2, ""},
		"this version":    {[2]int{1, 3}, [2]int{1, 3}, 3, ""},
		"an older client": {[2]int{1, 1}, [2]int{1, 2}, 1, ""},
		"an older owner":  {[2]int{1, 2}, [2]int{1, 1}, 1, ""},
		"a newer client":  {[2]int{2, 4}, [2]int{1, 2}, 2, ""},
		"a newer owner":   {[2]int{1, 2}, [2]int{2, 4}, 2, ""},
		"a client too old": {[2]int{1, 1}, [2]int{2, 3}, 0,
			"the client speaks version 1, the owner of the root versions 2 to 3"},
		"a client too new": {[2]int{3, 4}, [2]int{2, 2}, 0,
			"the client speaks versions 3 to 4, the owner of the root version 2"},
		"an owner of before": {[2]int{2, 3}, [2]int{0, 0}, 0,
			"the client speaks versions 2 to 3, the owner of the root version 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := ""
			if tc.owner == [2]int{} {
				path = serveVersion1(t)
			} else {
				path = serveVersions(t, fakeService{"/root"}, tc.owner[0], tc.owner[1])
			}
			c, err := admin.DialVersions(t.Context(), path, tc.client[0], tc.client[1])
			if tc.want != 0 {
				must(t, err)
				defer c.Close()
				if got := admin.VersionOf(c); got != tc.want {
					t.Errorf("version %d, want %d", got, tc.want)
				}
				return
			}
			if !errdefs.IsNotImplemented(err) || !cause.Is(err, cause.Version) ||
				!strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v of %v", err, cause.Of(err))
			}
		})
	}
}

// serveVersions serves svc with a range of protocol versions and returns the path of the socket.
func serveVersions(t *testing.T, svc tank.Service, oldest, latest int) string {
	return listen(t, func(s *rpc.Server) { admin.RegisterVersions(s, svc, oldest, latest) })
}

func listen(t *testing.T, register func(*rpc.Server)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tank.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	s := rpc.New(nil)
	register(s)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		must(t, <-served)
	})
	return path
}

// TestClientOfVersion1 replays the requests of clients from before the protocol had versions.
func TestClientOfVersion1(t *testing.T) {
	conn := raw(t, serve(t, fakeService{"/root"}, nil))
	for method, tc := range map[string]struct{ send, want string }{
		"Root":   {`{}`, `{"root":"/root","version":1}`},
		"Images": {`{}`, `[{"ref":"x","digest":"","size":0,"created":"0001-01-01T00:00:00Z"}]`},
		"Inspect": {`{"ref":"x"}`,
			`{"ref":"x","target":{"mediaType":"","digest":"","size":0},"created":"0001-01-01T00:00:00Z",` +
				`"updated":"0001-01-01T00:00:00Z","platforms":[{"platform":"","manifest":{"mediaType":"",` +
				`"digest":"","size":0},"layers":null,"diffIDs":null,"config":{"a":1}}]}`},
		"GC":    {`{}`, `{"images":0,"blobs":3,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0}`},
		"Check": {`{}`, `[{"what":"blob","name":"x","message":"blob x: missing"}]`},
		"Holders": {`{}`,
			`[{"holder":"containerd","blobs":2,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0,"alone":7}]`},
		"Release": {`{"holder":"h","force":true}`,
			`{"holder":"h","blobs":0,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0,"alone":0}`},
	} {
		var got string
		err := conn.Invoke(t.Context(), "/tank.admin.v1.Admin/"+method, tc.send, &got, grpc.ForceCodec(jsonText{}))
		if err != nil || got != tc.want {
			t.Errorf("%s: %s, %v, want %s", method, got, err, tc.want)
		}
	}
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/tank.admin.v1.Admin/Pull", grpc.ForceCodec(jsonText{}))
	must(t, err)
	must(t, stream.SendMsg(
		`{"request":{"ref":"r","platform":"linux/amd64","refresh":true,"noRootfs":true,`+
			`"hostsFiles":{"x/hosts.toml":""},"ownHosts":true}}`))
	d, layer := digest.FromString("r").String(), digest.FromString("layer").String()
	for _, want := range []string{
		`{"ask":{"id":1,"host":"docker.io"}}`,
		`{"progress":{"line":"pulling r as me"}}`,
		`{"progress":{"digest":"` + layer + `","offset":3,"total":4}}`,
		`{"image":{"ref":"r","digest":"` + d + `","manifest":"` + d + `","config":{"a":1},"cached":false}}`,
	} {
		var got string
		must(t, stream.RecvMsg(&got))
		if got != want {
			t.Errorf("pull: %s, want %s", got, want)
		}
		if strings.Contains(got, "ask") {
			must(t, stream.SendMsg(
				`{"answer":{"id":1,"credential":{"Username":"me","Password":"secret","IdentityToken":"",`+
					`"RegistryToken":""}}}`))
		}
	}
}

// serveVersion1 answers like owners from before the protocol had versions, and checks the requests.
func serveVersion1(t *testing.T) string {
	replies := map[string]string{
		"Root":   `{"root":"/root"}`,
		"Images": `[{"ref":"x","digest":"d","manifest":"m","platform":"p","size":5,"created":"2026-01-02T03:04:05Z"}]`,
		"Inspect": `{"ref":"x","target":{"mediaType":"","digest":"","size":0},"created":"0001-01-01T00:00:00Z",` +
			`"updated":"0001-01-01T00:00:00Z","platforms":null}`,
		"Remove": `{}`,
		"GC": `{"images":1,"blobs":3,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0,` +
			`"unfinished":[{"holder":"pull/x","bytes":4}]}`,
		"Check":   `[{"what":"blob","name":"x","message":"blob x: missing"}]`,
		"Holders": `[{"holder":"h","blobs":2,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":9,"alone":7}]`,
		"Release": `{"holder":"h","blobs":0,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0,"alone":0,` +
			`"freed":7}`,
	}
	d := grpc.ServiceDesc{ServiceName: "tank.admin.v1.Admin", HandlerType: (*any)(nil)}
	for name, reply := range replies {
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: name,
			Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return json.RawMessage(reply), dec(new(json.RawMessage))
			}})
	}
	d.Streams = []grpc.StreamDesc{{StreamName: "Pull", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			var first, answer struct {
				Request map[string]any
				Answer  struct {
					ID         int
					Credential map[string]string
				}
			}
			if err := s.RecvMsg(&first); err != nil || first.Request["ref"] != "r" ||
				first.Request["noRootfs"] != true {
				t.Errorf("request %v, %v", first.Request, err)
			}
			if err := s.SendMsg(json.RawMessage(`{"ask":{"id":7,"host":"docker.io"}}`)); err != nil {
				return err
			}
			if err := s.RecvMsg(&answer); err != nil || answer.Answer.ID != 7 ||
				answer.Answer.Credential["Username"] != "me" {
				t.Errorf("answer %v, %v", answer, err)
			}
			_ = s.SendMsg(json.RawMessage(`{"progress":{"line":"pulling"}}`))
			d := "sha256:" + strings.Repeat("a", 64)
			return s.SendMsg(
				json.RawMessage(`{"image":{"ref":"r","digest":"` + d + `","manifest":"` + d +
					`","config":{},"cached":true}}`))
		}}}
	return listen(t, func(s *rpc.Server) { s.RegisterService(&d, struct{}{}) })
}

// TestOwnerOfVersion1 calls an owner that answers like those from before the protocol had versions.
func TestOwnerOfVersion1(t *testing.T) {
	ctx := t.Context()
	c, err := admin.Dial(ctx, serveVersion1(t), nil)
	must(t, err)
	defer c.Close()
	if c.Root() != "/root" || admin.VersionOf(c) != 1 {
		t.Errorf("root %q, version %d", c.Root(), admin.VersionOf(c))
	}
	var lines []string
	img, err := c.Pull(ctx, "r", &tank.PullOptions{
		NoRootfs: true,
		Log:      func(line string) { lines = append(lines, line) },
		Credentials: func(context.Context, string) (tank.Credential, error) {
			return tank.Credential{Username: "me"},
				nil
		},
	})
	if err != nil || img.Ref != "r" || !img.Cached || len(lines) != 1 {
		t.Errorf("pull %+v, %q, %v", img, lines, err)
	}
	images, err := c.Images(ctx)
	if err != nil || len(images) != 1 || images[0].Size != 5 || images[0].Created.Year() != 2026 {
		t.Errorf("images %+v, %v", images, err)
	}
	if d, err := c.Inspect(ctx, "x"); err != nil || d.Ref != "x" {
		t.Errorf("inspect %+v, %v", d, err)
	}
	must(t, c.Remove(ctx, "x"))
	if r, err := c.GC(ctx); err != nil || r.Blobs != 3 || len(r.Unfinished) != 1 || r.Unfinished[0].Bytes != 4 {
		t.Errorf("gc %+v, %v", r, err)
	}
	must(t, c.Check(ctx, func(f tank.Fault) {
		if f.What != "blob" || f.Name != "x" || f.Message != "blob x: missing" {
			t.Errorf("fault %+v", f)
		}
	}))
	if hs, err := c.Holders(ctx); err != nil || len(hs) != 1 || hs[0].Exclusive != 7 {
		t.Errorf("holders %+v, %v", hs, err)
	}
	if h, err := c.Release(ctx, "h", nil); err != nil || h.Freed != 7 {
		t.Errorf("release %+v, %v", h, err)
	}
}

// TestRepair shows that a repair passes on its options, its progress, requests for credentials and its result, and that
// an owner of an older version is reported before anything is sent.
func TestRepair(t *testing.T) {
	ctx := t.Context()
	var lines []string
	var events []tank.Event
	opts := &tank.RepairOptions{
		Log:      func(line string) { lines = append(lines, line) },
		Progress: func(e tank.Event) { events = append(events, e) },
		Credentials: func(_ context.Context, host string) (tank.Credential, error) {
			return tank.Credential{Username: "me at " + host}, nil
		},
	}
	c, err := admin.Dial(ctx, serve(t, fakeService{"/root"}, nil), nil)
	must(t, err)
	defer c.Close()
	res, err := c.Repair(ctx, opts)
	if err != nil || len(res.Mended) != 1 || res.Mended[0].Name != "x" || len(res.Remains) != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if len(lines) != 1 || lines[0] != "repairing as me at docker.io" || len(events) != 1 || events[0].Offset != 3 {
		t.Errorf("lines %q, events %+v", lines, events)
	}
	opts.Offline, lines = true, nil
	if _, err := c.Repair(ctx, opts); err != nil || len(lines) != 1 || lines[0] != "repairing as nobody" {
		t.Errorf("offline: %q, %v", lines, err)
	}

	for _, latest := range []int{1, 2} {
		old, err := admin.Dial(ctx, serveVersions(t, fakeService{"/root"}, 1, latest), nil)
		must(t, err)
		defer old.Close()
		if _, err := old.Repair(ctx, opts); !errdefs.IsNotImplemented(err) || !cause.Is(err, cause.Version) ||
			!strings.Contains(err.Error(), "older Tank") {
			t.Errorf("an owner of version %d: %v", latest, err)
		}
	}
}
