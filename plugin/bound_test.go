package plugin_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tank-snapshotter/tank/binding"
	tankcontent "github.com/tank-snapshotter/tank/content"
	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/snapshot"
)

// boundServer serves a root to callers whose databases the test chooses. This process plays all of
// them.
type boundServer struct {
	t      *testing.T
	socket string
	binder *binding.Binder

	mu     sync.Mutex // guards what follows
	opened containerddb.File
	runs   map[uint64]bool // inodes of databases whose process runs
	looks  int
}

func serveBound(t *testing.T) *boundServer {
	t.Helper()
	root := t.TempDir()
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	must(t, err)
	blobs, err := tankcontent.Open(root, db, nil)
	must(t, err)
	layers, err := snapshot.Open(root, db, nil, nil)
	must(t, err)
	s := &boundServer{t: t, socket: filepath.Join(root, "s"), runs: map[uint64]bool{}}
	s.binder = binding.New(db, &binding.Options{
		HandOver: layers.HandOver, SetAside: layers.SetAside,
		Database: func(p peer.Process, _ []string) (containerddb.File, error) {
			if p.PID != os.Getpid() {
				t.Errorf("the caller is %+v", p)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.looks++
			return s.opened, nil
		},
		// This process plays several processes, one after the other.
		Alive: func(peer.Process) (bool, bool) { return false, false },
		Busy: func(f containerddb.File) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.runs[f.Inode]
		},
	})
	l, err := net.Listen("unix", s.socket)
	must(t, err)
	server := plugin.New(&plugin.Options{
		Binder: s.binder, Layers: layers.Layers(), Applier: layers, Drain: time.Second,
		StoresOf: func(h metadata.Holder) plugin.Stores {
			return plugin.Stores{Content: blobs.For(h), Snapshotter: layers.For(h)}
		},
	})
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		must(t, <-served)
		s.binder.Close()
		must(t, layers.Close())
		must(t, blobs.Close())
		must(t, db.Close())
	})
	return s
}

// containerd starts a process with the database n and returns its stores. stop ends the process.
func (s *boundServer) containerd(n uint64) (content.Store, snapshots.Snapshotter, func()) {
	s.t.Helper()
	s.mu.Lock()
	s.opened = containerddb.File{Path: "/meta.db", Inode: n, Born: time.Unix(int64(n), 0), Writes: 1}
	s.runs[n] = true
	s.mu.Unlock()
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(s.t, err)
	stop := func() {
		conn.Close()
		s.mu.Lock()
		s.runs[n] = false
		s.mu.Unlock()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			callers, err := s.binder.Callers()
			must(s.t, err)
			busy := false
			for _, c := range callers {
				busy = busy || c.Connected
			}
			if !busy {
				return
			}
			if time.Now().After(deadline) {
				s.t.Fatal("the connection did not end")
			}
		}
	}
	s.t.Cleanup(func() { conn.Close() })
	return contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "tank"), stop
}

// TestBound shows that, over one socket, each containerd has its own content, ingests and
// snapshots. An unknown containerd gets those of a former one once any of its calls names a
// snapshot of that one.
func TestBound(t *testing.T) {
	ctx := t.Context()
	const layer, container = "default/2/sha256:layer", "default/3/container"
	for _, tc := range []struct {
		name string
		call func(sn snapshots.Snapshotter) error
		kept bool // the call is no proof of identity
	}{
		{"Stat", func(sn snapshots.Snapshotter) error {
			_, err := sn.Stat(ctx, container)
			return err
		}, false},
		{"Update", func(sn snapshots.Snapshotter) error {
			_, err := sn.Update(ctx, snapshots.Info{Name: container}, "labels")
			return err
		}, false},
		{"Usage", func(sn snapshots.Snapshotter) error {
			_, err := sn.Usage(ctx, container)
			return err
		}, false},
		{"Mounts", func(sn snapshots.Snapshotter) error {
			_, err := sn.Mounts(ctx, container)
			return err
		}, false},
		{"Prepare", func(sn snapshots.Snapshotter) error {
			_, err := sn.Prepare(ctx, "default/7/more", layer)
			return err
		}, false},
		{"View", func(sn snapshots.Snapshotter) error {
			_, err := sn.View(ctx, "default/7/more", layer)
			return err
		}, false},
		{"Commit", func(sn snapshots.Snapshotter) error { return sn.Commit(ctx, "default/7/more", container) }, false},
		{"Remove", func(sn snapshots.Snapshotter) error { return sn.Remove(ctx, container) }, true},
		{"Walk", func(sn snapshots.Snapshotter) error {
			return sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
				t.Errorf("the new containerd sees %s", i.Name)
				return nil
			})
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := serveBound(t)
			blobs, sn, stop := s.containerd(1)
			data := []byte("a blob")
			desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
			w, err := blobs.Writer(ctx, content.WithRef("default/1/blob"), content.WithDescriptor(desc))
			must(t, err)
			_, err = w.Write(data)
			must(t, err)
			must(t, w.Commit(ctx, desc.Size, desc.Digest))
			w, err = blobs.Writer(ctx, content.WithRef("default/2/unfinished"))
			must(t, err)
			_, err = w.Write(data)
			must(t, err)
			must(t, w.Close())
			_, err = sn.Prepare(ctx, "default/1/extract", "")
			must(t, err)
			must(t, sn.Commit(ctx, layer, "default/1/extract"))
			_, err = sn.Prepare(ctx, container, layer)
			must(t, err)
			stop()

			blobs, sn, stop = s.containerd(2)
			must(t, blobs.Walk(ctx, func(i content.Info) error {
				t.Errorf("the new containerd sees the blob %s", i.Digest)
				return nil
			}))
			if err := blobs.Delete(ctx, desc.Digest); !errdefs.IsNotFound(err) {
				t.Errorf("delete of a blob: %v", err)
			}
			if sts, err := blobs.ListStatuses(ctx); err != nil || len(sts) > 0 {
				t.Errorf("the new containerd sees ingests: %v, %v", sts, err)
			}
			if err := blobs.Abort(ctx, "default/2/unfinished"); !errdefs.IsNotFound(err) {
				t.Errorf("abort of an ingest: %v", err)
			}
			if _, err := blobs.Status(ctx, "default/2/unfinished"); !errdefs.IsNotFound(err) {
				t.Errorf("status of an ingest: %v", err)
			}
			err = tc.call(sn)
			if tc.kept {
				if err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
				stop()
				_, sn, _ = s.containerd(1)
				if _, err := sn.Stat(ctx, container); err != nil {
					t.Errorf("return of the first containerd: %v", err)
				}
				return
			}
			if err != nil {
				t.Errorf("snapshot of the former containerd: %v", err)
			}
			if i, err := sn.Stat(ctx, layer); err != nil || i.Name != layer {
				t.Errorf("%+v, %v", i, err)
			}
			seen := 0
			must(t, blobs.Walk(ctx, func(content.Info) error {
				seen++
				return nil
			}))
			if sts, err := blobs.ListStatuses(ctx); err != nil || len(sts) != 1 || seen != 1 {
				t.Errorf("the new containerd sees %d blobs and the ingests %v, %v", seen, sts, err)
			}
			if s.looks != 2 {
				t.Errorf("%d lookups of databases for 2 processes", s.looks)
			}
		})
	}
}

// TestLooksIntoNothingOfOthers shows that an extraction of one containerd reads, and so holds, no
// blob that another containerd fetched.
func TestLooksIntoNothingOfOthers(t *testing.T) {
	ctx := t.Context()
	s := serveBound(t)
	blobs, _, stop := s.containerd(1)
	data := []byte(`{"schemaVersion":2,"layers":[]}`)
	put(ctx, t, blobs, ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, data)
	stop()
	others, sn, _ := s.containerd(2)
	_, err := sn.Prepare(ctx, "default/2/extract-1 "+digest.FromString("chain").String(), "")
	must(t, err)
	must(t, others.Walk(ctx, func(i content.Info) error {
		t.Errorf("the second containerd holds %s", i.Digest)
		return nil
	}))
}
