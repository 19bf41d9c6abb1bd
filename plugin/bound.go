package plugin

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/binding"
	"github.com/tank-snapshotter/tank/metadata"
)

// Stores are the stores of one holder. A store that is nil is not served.
type Stores struct {
	Content     content.Store
	Snapshotter snapshots.Snapshotter
}

// callers chooses the stores of each call by the process that makes it.
type callers struct {
	binder *binding.Binder
	stores func(metadata.Holder) Stores
	made   sync.Map // holder -> Stores
}

// of returns the session of the connection that a call came through.
func (c *callers) of(ctx context.Context) (*binding.Session, error) {
	conn, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok {
		return nil, errdefs.ErrUnavailable.WithMessage("a call without a connection")
	}
	return conn.sessionOf(ctx, c.binder)
}

// holder returns the holder that a call acts for; "" if it cannot be determined.
func (c *callers) holder(ctx context.Context) metadata.Holder {
	s, err := c.of(ctx)
	if err != nil {
		return ""
	}
	return s.Holder()
}

func (c *callers) storesOf(h metadata.Holder) Stores {
	if s, ok := c.made.Load(h); ok {
		return s.(Stores)
	}
	s, _ := c.made.LoadOrStore(h, c.stores(h))
	return s.(Stores)
}

func (c *callers) content(ctx context.Context) (content.Store, error) {
	s, err := c.of(ctx)
	if err != nil {
		return nil, err
	}
	return c.storesOf(s.Holder()).Content, nil
}

// refer makes a call that names snapshots. If a snapshot does not exist, the caller may be a former
// containerd that was not recognized yet. If that name makes it recognized, refer repeats the call.
func (c *callers) refer(ctx context.Context, call func(snapshots.Snapshotter) error, keys ...string) error {
	s, err := c.of(ctx)
	if err != nil {
		return err
	}
	h := s.Holder()
	defer s.Left(ctx, h)
	err = call(c.storesOf(h).Snapshotter)
	switch {
	case err == nil:
		for _, key := range keys {
			s.Named(key)
		}
	case errdefs.IsNotFound(err):
		for _, key := range keys {
			if s.Claim(ctx, key) {
				return call(c.storesOf(s.Holder()).Snapshotter)
			}
		}
	}
	return err
}

// make makes a call that creates the snapshot key and names other snapshots.
func (c *callers) make(ctx context.Context, key string, call func(snapshots.Snapshotter) error,
	others ...string,
) error {
	s, err := c.of(ctx)
	if err != nil {
		return err
	}
	if err := s.Making(ctx, key); err != nil {
		return err
	}
	return c.refer(ctx, call, others...)
}

// boundSnapshots is the snapshotter of the holder that the caller acts for.
type boundSnapshots struct{ *callers }

var (
	_ snapshots.Snapshotter = boundSnapshots{}
	_ snapshots.Cleaner     = boundSnapshots{}
)

func (b boundSnapshots) Stat(ctx context.Context, key string) (i snapshots.Info, err error) {
	err = b.refer(ctx, func(sn snapshots.Snapshotter) (err error) {
		i, err = sn.Stat(ctx, key)
		return err
	}, key)
	return i, err
}

func (b boundSnapshots) Update(ctx context.Context, in snapshots.Info, fields ...string) (i snapshots.Info, err error) {
	err = b.refer(ctx, func(sn snapshots.Snapshotter) (err error) {
		i, err = sn.Update(ctx, in, fields...)
		return err
	}, in.Name)
	return i, err
}

func (b boundSnapshots) Usage(ctx context.Context, key string) (u snapshots.Usage, err error) {
	err = b.refer(ctx, func(sn snapshots.Snapshotter) (err error) {
		u, err = sn.Usage(ctx, key)
		return err
	}, key)
	return u, err
}

func (b boundSnapshots) Mounts(ctx context.Context, key string) (m []mount.Mount, err error) {
	err = b.refer(ctx, func(sn snapshots.Snapshotter) (err error) {
		m, err = sn.Mounts(ctx, key)
		return err
	}, key)
	return m, err
}

func (b boundSnapshots) Prepare(ctx context.Context, key, parent string,
	opts ...snapshots.Opt,
) (m []mount.Mount, err error) {
	err = b.make(ctx, key, func(sn snapshots.Snapshotter) (err error) {
		m, err = sn.Prepare(ctx, key, parent, opts...)
		return err
	}, parent)
	return m, err
}

func (b boundSnapshots) View(ctx context.Context, key, parent string,
	opts ...snapshots.Opt,
) (m []mount.Mount, err error) {
	err = b.make(ctx, key, func(sn snapshots.Snapshotter) (err error) {
		m, err = sn.View(ctx, key, parent, opts...)
		return err
	}, parent)
	return m, err
}

func (b boundSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	// A restored database is recognized by the key, not by the new name, so the key comes first.
	commit := func(sn snapshots.Snapshotter) error { return sn.Commit(ctx, name, key, opts...) }
	return b.refer(ctx, commit, key, base.Parent)
}

// Remove does not help to recognize a caller: a database is recognized by snapshots that it uses, not by
// those that it removes.
func (b boundSnapshots) Remove(ctx context.Context, key string) error {
	s, err := b.of(ctx)
	if err != nil {
		return err
	}
	return b.storesOf(s.Holder()).Snapshotter.Remove(ctx, key)
}

func (b boundSnapshots) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	s, err := b.of(ctx)
	if err != nil {
		return err
	}
	return b.storesOf(s.Holder()).Snapshotter.Walk(ctx, fn, filters...)
}

func (b boundSnapshots) Cleanup(ctx context.Context) error {
	s, err := b.of(ctx)
	if err != nil {
		return err
	}
	if c, ok := b.storesOf(s.Holder()).Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

func (b boundSnapshots) Close() error { return nil }

// boundContent is the blob store of the holder that the caller acts for.
type boundContent struct{ *callers }

var _ content.Store = boundContent{}

func (b boundContent) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	s, err := b.content(ctx)
	if err != nil {
		return content.Info{}, err
	}
	return s.Info(ctx, d)
}

func (b boundContent) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	s, err := b.content(ctx)
	if err != nil {
		return nil, err
	}
	return s.ReaderAt(ctx, desc)
}

func (b boundContent) Update(ctx context.Context, in content.Info, fields ...string) (content.Info, error) {
	s, err := b.content(ctx)
	if err != nil {
		return content.Info{}, err
	}
	return s.Update(ctx, in, fields...)
}

func (b boundContent) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	s, err := b.content(ctx)
	if err != nil {
		return err
	}
	return s.Walk(ctx, fn, filters...)
}

func (b boundContent) Delete(ctx context.Context, d digest.Digest) error {
	s, err := b.content(ctx)
	if err != nil {
		return err
	}
	return s.Delete(ctx, d)
}

func (b boundContent) Status(ctx context.Context, ref string) (content.Status, error) {
	s, err := b.content(ctx)
	if err != nil {
		return content.Status{}, err
	}
	return s.Status(ctx, ref)
}

func (b boundContent) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	s, err := b.content(ctx)
	if err != nil {
		return nil, err
	}
	return s.ListStatuses(ctx, filters...)
}

func (b boundContent) Abort(ctx context.Context, ref string) error {
	s, err := b.content(ctx)
	if err != nil {
		return err
	}
	return s.Abort(ctx, ref)
}

func (b boundContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	s, err := b.of(ctx)
	if err != nil {
		return nil, err
	}
	h := s.Holder()
	w, err := b.storesOf(h).Content.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return boundWriter{w, s, h}, nil
}

// boundWriter gives a committed blob to the holder that the caller acts for at the time of the commit.
type boundWriter struct {
	content.Writer
	session *binding.Session
	holder  metadata.Holder
}

func (w boundWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	defer w.session.Left(ctx, w.holder)
	return w.Writer.Commit(ctx, size, expected, opts...)
}
