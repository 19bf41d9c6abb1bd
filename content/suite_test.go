package content

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	ctrmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tank-snapshotter/tank/metadata"
)

// These are containerd's own suites. They never call Delete; holder_test.go does.

func TestSuiteInProcess(t *testing.T) {
	testsuite.ContentSuite(t, "view", func(ctx context.Context, dir string) (
		context.Context, content.Store, func() error, error,
	) {
		hs, done, err := suiteStore(t, dir)
		return ctx, hs, done, err
	})
}

func TestSuiteOverSocket(t *testing.T) {
	testsuite.ContentSuite(t, "socket", func(ctx context.Context, dir string) (
		context.Context, content.Store, func() error, error,
	) {
		hs, done, err := suiteStore(t, dir)
		if err != nil {
			return nil, nil, nil, err
		}
		cs, stop, err := serve(hs, filepath.Join(t.TempDir(), "s"))
		if err != nil {
			return nil, nil, nil, err
		}
		return ctx, cs, func() error { stop(); return done() }, nil
	})
}

func TestSuiteUnderContainerdMetadata(t *testing.T) {
	under := func(opts ...ctrmetadata.DBOpt) testsuite.StoreInitFn {
		return func(ctx context.Context, dir string) (context.Context, content.Store, func() error, error) {
			hs, done, err := suiteStore(t, dir)
			if err != nil {
				return nil, nil, nil, err
			}
			return underMetadata(ctx, hs, filepath.Join(dir, "containerd.db"), done, opts...)
		}
	}
	isolated := []ctrmetadata.DBOpt{ctrmetadata.WithPolicyIsolated}
	testsuite.ContentSuite(t, "metadata", under())
	testsuite.ContentCrossNSSharedSuite(t, "metadata", under())
	testsuite.ContentCrossNSIsolatedSuite(t, "metadata", under(isolated...))
	testsuite.ContentSharedNSIsolatedSuite(t, "metadata", under(isolated...))
}

// suiteStore opens a root in a directory of the suite, which removes it before the test's own
// cleanup runs.
func suiteStore(t *testing.T, dir string) (*HolderStore, func() error, error) {
	db, err := metadata.Open(filepath.Join(dir, "metadata.db"), &metadata.Options{NoSync: true})
	if err != nil {
		return nil, nil, err
	}
	s, err := Open(dir, db, nil)
	if err != nil {
		return nil, nil, err
	}
	return s.For(metadata.Containerd), func() error {
		fault := func(f metadata.Fault) { t.Error(f) }
		must(t, db.Check(fault))
		must(t, s.Check(context.Background(), fault))
		must(t, s.Close())
		return db.Close()
	}, nil
}

func underMetadata(ctx context.Context, cs content.Store, path string, done func() error, opts ...ctrmetadata.DBOpt) (
	context.Context, content.Store, func() error, error,
) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return nil, nil, nil, err
	}
	var count atomic.Uint64
	name := testsuite.Name(ctx)
	ctx = testsuite.SetContextWrapper(ctx, func(ctx context.Context, shared bool) (
		context.Context, func(context.Context) error, error,
	) {
		ns := fmt.Sprintf("%s-n%d", name, count.Add(1))
		if shared {
			err := db.Update(func(tx *bolt.Tx) error {
				ctx := namespaces.WithNamespace(ctx, ns)
				return ctrmetadata.NewNamespaceStore(tx).SetLabel(ctx, ns, labels.LabelSharedNamespace, "true")
			})
			if err != nil {
				return nil, nil, err
			}
		}
		return namespaces.WithNamespace(ctx, ns), func(context.Context) error { return nil }, nil
	})
	store := ctrmetadata.NewDB(db, cs, nil, opts...).ContentStore()
	return ctx, store, func() error {
		if err := db.Close(); err != nil {
			return err
		}
		return done()
	}, nil
}

// serve serves cs on a unix socket and returns its client.
func serve(cs content.Store, path string) (content.Store, func(), error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, nil, err
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize)) // as containerd's own socket
	contentapi.RegisterContentServer(srv, contentserver.New(cs))
	go srv.Serve(l)
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		srv.Stop()
		return nil, nil, err
	}
	return proxy.NewContentStore(conn), func() { conn.Close(); srv.Stop() }, nil
}
