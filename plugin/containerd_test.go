package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tank-snapshotter/tank/plugin"
)

// fakeContainerd is the part of containerd's API that plugin.Containerd calls. The method named by
// hang blocks until the caller cancels.
type fakeContainerd struct {
	contentapi.UnimplementedContentServer
	blobs map[string]map[digest.Digest][]byte // by namespace
	size  int64                               // returned by Info; 0: the right size

	mu    sync.Mutex // guards hang
	hang  string     // list, info, read, or middle: a read blocks after its first message
	reads int
}

func (f *fakeContainerd) hangs(at string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hang == at
}

func (f *fakeContainerd) setHang(at string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = at
}

// fakeNamespaces lists the namespaces of a fake containerd.
type fakeNamespaces struct {
	namespacesapi.UnimplementedNamespacesServer
	fake *fakeContainerd
}

func (f fakeNamespaces) List(ctx context.Context,
	_ *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	if f.fake.hangs("list") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var all namespacesapi.ListNamespacesResponse
	for ns := range f.fake.blobs {
		all.Namespaces = append(all.Namespaces, &namespacesapi.Namespace{Name: ns})
	}
	return &all, nil
}

func (f *fakeContainerd) blob(ctx context.Context, d string) ([]byte, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	b, ok := f.blobs[ns][digest.Digest(d)]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "content digest %s: not found", d)
	}
	return b, nil
}

func (f *fakeContainerd) Info(ctx context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	if f.hangs("info") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b, err := f.blob(ctx, req.GetDigest())
	if err != nil {
		return nil, err
	}
	size := int64(len(b))
	if f.size != 0 {
		size = f.size
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.GetDigest(), Size: size}}, nil
}

func (f *fakeContainerd) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	f.mu.Lock()
	f.reads++
	f.mu.Unlock()
	b, err := f.blob(stream.Context(), req.GetDigest())
	if err != nil {
		return err
	}
	if f.hangs("read") {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	for off := 0; off < len(b); off += 32 << 10 {
		if off > 0 && f.hangs("middle") {
			<-stream.Context().Done()
			return stream.Context().Err()
		}
		if err := stream.Send(
			&contentapi.ReadContentResponse{Offset: int64(off), Data: b[off:min(off+32<<10, len(b))]}); err != nil {
			return err
		}
	}
	return nil
}

// listen serves f at the path until the returned function is called.
func (f *fakeContainerd) listen(t *testing.T, path string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	must(t, err)
	s := grpc.NewServer()
	contentapi.RegisterContentServer(s, f)
	namespacesapi.RegisterNamespacesServer(s, fakeNamespaces{fake: f})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return s.Stop
}

// fakeStore starts a fake containerd with one blob in the namespace "one" and an empty namespace.
func fakeStore(t *testing.T, size int) (*fakeContainerd, digest.Digest, []byte) {
	t.Helper()
	data := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, err := random.Read(data)
	must(t, err)
	d := digest.FromBytes(data)
	return &fakeContainerd{blobs: map[string]map[digest.Digest][]byte{"one": {d: data}, "two": {}}}, d, data
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tank") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "c.sock")
}

func dialFake(t *testing.T, path string) *plugin.Containerd {
	t.Helper()
	c, err := plugin.DialContainerd(path, &plugin.ContainerdOptions{Answer: 2 * time.Second, Stall: 2 * time.Second})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

// called returns the context of a call from containerd in a namespace.
func called(ns string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs(namespaces.GRPCHeader, ns))
}

func readBlob(ctx context.Context, c *plugin.Containerd, d digest.Digest) ([]byte, error) {
	r, err := c.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close(), r.Close())
}

// TestContainerdBlobs shows in which namespaces blobs are found and read.
func TestContainerdBlobs(t *testing.T) {
	f, d, data := fakeStore(t, 5<<20+17)
	path := socketPath(t)
	f.listen(t, path)
	c := dialFake(t, path)
	for _, row := range []struct {
		testName string
		ctx      context.Context
		d        digest.Digest
		is       func(error) bool // nil: found
	}{
		{"in the namespace of the call", called("one"), d, nil},
		{"in another namespace", called("two"), d, errdefs.IsNotFound},
		{"in a missing namespace", called("three"), d, errdefs.IsNotFound},
		{"without a namespace", context.Background(), d, nil},
		{"without a namespace, missing", context.Background(), digest.FromString("x"), errdefs.IsNotFound},
		{"no digest", called("one"), "sha256:../../x", errdefs.IsInvalidArgument},
	} {
		t.Run(row.testName, func(t *testing.T) {
			if _, err := namespaces.NamespaceRequired(row.ctx); err == nil && row.d != "sha256:../../x" {
				if err := c.Access(row.ctx, row.d); (err == nil) != (row.is == nil) || err != nil && !row.is(err) {
					t.Errorf("access: %v", err)
				}
			}
			b, err := readBlob(row.ctx, c, row.d)
			switch {
			case row.is != nil && !row.is(err):
				t.Errorf("wrong class: %v", err)
			case row.is == nil && (err != nil || !bytes.Equal(b, data)):
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	if f.reads != 2 {
		t.Errorf("%d streams for two blobs", f.reads)
	}
	for _, ns := range []string{"one", "two", ""} {
		if n, err := c.Size(called(ns), d); err != nil || n != int64(len(data)) {
			t.Errorf("size for %q: %d, %v", ns, n, err)
		}
	}
	if _, err := c.Size(called("one"), digest.FromString("x")); !errdefs.IsNotFound(err) {
		t.Errorf("size of a missing blob: %v", err)
	}
}

// TestContainerdDamage shows that reading a blob whose content does not match its digest never ends
// with io.EOF.
func TestContainerdDamage(t *testing.T) {
	for _, row := range []struct {
		testName string
		damage   func(f *fakeContainerd, d digest.Digest, data []byte)
	}{
		{"a byte", func(_ *fakeContainerd, _ digest.Digest, data []byte) { data[len(data)-1] ^= 1 }},
		{"cut", func(f *fakeContainerd, d digest.Digest, data []byte) {
			f.size, f.blobs["one"][d] = int64(len(data)), data[:len(data)/2]
		}},
		{"cut, with a size that matches",
			func(f *fakeContainerd, d digest.Digest, data []byte) { f.blobs["one"][d] = data[:0] }},
		{"more", func(f *fakeContainerd, d digest.Digest, data []byte) { f.blobs["one"][d] = append(data, 0) }},
	} {
		t.Run(row.testName, func(t *testing.T) {
			f, d, data := fakeStore(t, 3<<20)
			row.damage(f, d, data)
			path := socketPath(t)
			f.listen(t, path)
			if _, err := readBlob(called("one"), dialFake(t, path), d); !errdefs.IsDataLoss(err) {
				t.Errorf("wrong class: %v", err)
			}
		})
	}
}

// TestContainerdHangs shows that every call ends with ErrUnavailable if containerd hangs, whichever
// method hangs.
func TestContainerdHangs(t *testing.T) {
	f, d, _ := fakeStore(t, 5<<20)
	path := socketPath(t)
	f.listen(t, path)
	c, err := plugin.DialContainerd("unix://"+path,
		&plugin.ContainerdOptions{Answer: 100 * time.Millisecond, Stall: 200 * time.Millisecond})
	must(t, err)
	defer c.Close()
	for _, at := range []string{"list", "info", "read", "middle"} {
		t.Run(at, func(t *testing.T) {
			f.setHang(at)
			start := time.Now()
			if _, err := readBlob(context.Background(), c, d); !errdefs.IsUnavailable(err) {
				t.Errorf("open and read: %v", err)
			}
			if _, err := c.Size(called("one"), d); (at == "list" || at == "info") && !errdefs.IsUnavailable(err) {
				t.Errorf("size: %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	f.setHang("")
	r, err := c.Open(called("one"), d)
	must(t, err)
	defer r.Close()
	time.Sleep(500 * time.Millisecond) // a slow reader is no stall of containerd
	if n, err := io.Copy(io.Discard, r); err != nil || n != 5<<20 {
		t.Errorf("slow reader: %d bytes, %v", n, err)
	}
}

// TestContainerdClose shows that Close ends a blocked Read.
func TestContainerdClose(t *testing.T) {
	f, d, _ := fakeStore(t, 1<<20)
	f.hang = "middle"
	path := socketPath(t)
	f.listen(t, path)
	c, err := plugin.DialContainerd(path, &plugin.ContainerdOptions{Stall: time.Hour})
	must(t, err)
	defer c.Close()
	for _, end := range []string{"close", "context"} {
		ctx, cancel := context.WithCancel(called("one"))
		r, err := c.Open(ctx, d)
		must(t, err)
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, r)
			read <- err
		}()
		if end == "context" {
			cancel()
		} else {
			must(t, r.Close())
		}
		select {
		case err := <-read:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", end, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Read still waits", end)
		}
		cancel()
		must(t, r.Close())
	}
}

// TestContainerdComesAndGoes shows that containerd may start after Tank and may restart, and that
// calls without a running containerd soon end with ErrUnavailable.
func TestContainerdComesAndGoes(t *testing.T) {
	f, d, data := fakeStore(t, 2<<20)
	path := socketPath(t)
	c, err := plugin.DialContainerd(path,
		&plugin.ContainerdOptions{Answer: 200 * time.Millisecond, Stall: 2 * time.Second})
	must(t, err)
	defer c.Close()
	away := func() {
		t.Helper()
		start := time.Now()
		if _, err := c.Size(called("one"), d); !errdefs.IsUnavailable(err) {
			t.Errorf("size: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
	}
	for range 3 {
		away()
		if _, err := readBlob(called("one"), c, d); !errdefs.IsUnavailable(err) {
			t.Errorf("open: %v", err)
		}
		stop := f.listen(t, path)
		if b, err := readBlob(called("one"), c, d); err != nil || !bytes.Equal(b, data) {
			t.Errorf("read right after the start: %d bytes, %v", len(b), err)
		}
		f.setHang("middle")
		r, err := c.Open(called("one"), d)
		must(t, err)
		_, err = io.ReadFull(r, make([]byte, 1000))
		must(t, err)
		stop()
		if _, err := io.Copy(io.Discard, r); !errdefs.IsUnavailable(err) {
			t.Errorf("read while containerd stops: %v", err)
		}
		must(t, r.Close())
		f.setHang("")
		os.Remove(path)
	}
}
