package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

// local is the service of a root that this process owns, for itself and for the commands that come second.
type local struct {
	tank     *tank.Tank
	hostsDir string // for pulls that name none, as those of others do
}

var _ plugin.Admin = (*local)(nil)

// openLocal owns the root. errdefs.ErrUnavailable while another process does.
func openLocal(root, hostsDir string, opts *tank.Options) (*local, error) {
	t, err := tank.Open(root, opts)
	if err != nil {
		return nil, rootError(err)
	}
	return &local{tank: t, hostsDir: hostsDir}, nil
}

// rootError adds a hint to an error of opening a root whose cause is not known. No registry and no image causes such an
// error.
func rootError(err error) error {
	switch why := cause.Of(err).Kind; {
	case err == nil, errdefs.IsUnavailable(err), errdefs.IsInvalidArgument(err):
		return err
	case why != "" && why != cause.Denied:
		return err
	}
	return hinted{localError{err}, "Choose another directory with --root, or check what this process may do there."}
}

// Close gives the root up.
func (l *local) Close() error { return l.tank.Close() }

// Root is the root's absolute path.
func (l *local) Root() string { return l.tank.Root() }

// alive checks that the root is served: this process answers at every address, as others reach it, and the database
// lets a reader and a writer have their turn.
func (l *local) alive(ctx context.Context, sockets []string) error {
	for _, socket := range sockets {
		self, err := dial(ctx, socket)
		if err != nil {
			return err
		}
		root := self.Root()
		self.Close()
		if root != l.Root() {
			return fmt.Errorf("socket %s: another process answers, for the root %s: %w", socket, root, errdefs.ErrUnavailable)
		}
	}
	return l.tank.Probe(ctx)
}

// Pull pulls an image.
func (l *local) Pull(ctx context.Context, req plugin.PullRequest,
	client plugin.PullClient,
) (*plugin.PulledImage, error) {
	report := client.Report
	if report == nil {
		report = func(plugin.Progress) {}
	}
	hostsDir := first(client.HostsDir, l.hostsDir)
	if req.OwnHosts {
		hostsDir = client.HostsDir
	}
	i, err := l.tank.Pull(ctx, req.Ref, &tank.PullOptions{
		Offline: req.Offline, Refresh: req.Refresh, NoRootfs: req.NoRootfs, NoSync: req.NoSync, Platform: req.Platform,
		PlainHTTP: req.Plain, HostsDir: hostsDir, HostsFiles: req.HostsFiles, Credentials: credentialsOf(client),
		Log: func(line string) { report(plugin.Progress{Line: line}) },
		Progress: func(e tank.Event) {
			report(plugin.Progress{
				Digest: e.Descriptor.Digest.String(), Total: e.Descriptor.Size, Offset: e.Offset, Done: e.Done, Cached: e.Cached,
			})
		},
	})
	if err != nil {
		return nil, err
	}
	return &plugin.PulledImage{
		Ref: i.Ref, Digest: i.Digest.String(), Manifest: i.Manifest.String(), Rootfs: i.Rootfs, Config: i.Config, Cached: i.Cached,
	}, nil
}

// credentialsOf asks the client; without one, nobody is known.
func credentialsOf(client plugin.PullClient) auth.Source {
	if client.Credentials == nil {
		return nil
	}
	return func(ctx context.Context, host string) (auth.Credential, error) {
		c, err := client.Credentials(ctx, host)
		return auth.Credential(c), err
	}
}

// Images lists what was pulled.
func (l *local) Images(ctx context.Context) ([]plugin.ImageInfo, error) {
	images, err := l.tank.Images(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]plugin.ImageInfo, len(images))
	for n, i := range images {
		infos[n] = plugin.ImageInfo{
			Ref: i.Ref, Digest: i.Digest.String(), Manifest: i.Manifest.String(), Platform: i.Platform, Rootfs: i.Rootfs,
			Size: i.Size, Untagged: i.Untagged, Created: i.Created,
		}
	}
	return infos, nil
}

// Inspect returns all that is recorded of an image.
func (l *local) Inspect(ctx context.Context, ref string) (json.RawMessage, error) {
	details, err := l.tank.Inspect(ctx, ref)
	if err != nil {
		return nil, err
	}
	return json.Marshal(details)
}

// Remove forgets an image.
func (l *local) Remove(ctx context.Context, ref string) error { return l.tank.Remove(ctx, ref) }

// GC deletes what nobody holds.
func (l *local) GC(ctx context.Context) (plugin.Reclaimed, error) {
	r, err := l.tank.GC(ctx)
	got := plugin.Reclaimed{
		Images: r.Images, Blobs: r.Blobs, Ingests: r.Ingests, Layers: r.Layers, Rootfs: r.Rootfs, Snapshots: r.Snapshots,
		Bytes: r.Bytes, Kept: r.Kept,
	}
	for _, u := range r.Unfinished {
		got.Unfinished = append(got.Unfinished, plugin.Unfinished(u))
	}
	return got, err
}

// Check compares the disk with the records.
func (l *local) Check(ctx context.Context) ([]plugin.Fault, error) {
	var faults []plugin.Fault
	err := l.tank.Check(ctx, func(f tank.Fault) {
		faults = append(faults, plugin.Fault{What: f.What, Name: f.Name, Message: f.Error()})
	})
	return faults, err
}

// Holders lists who holds what.
func (l *local) Holders(ctx context.Context) ([]plugin.Holder, error) {
	holders, err := l.tank.Holders(ctx)
	infos := make([]plugin.Holder, len(holders))
	for n, h := range holders {
		infos[n] = plugin.Holder(h)
	}
	return infos, err
}

// Release gives up what a holder holds, or gives it to another.
func (l *local) Release(ctx context.Context, req plugin.ReleaseRequest) (plugin.Holder, error) {
	if req.To != "" {
		h, err := l.tank.HandOver(ctx, req.Holder, req.To)
		return plugin.Holder(h), err
	}
	h, err := l.tank.Release(ctx, req.Holder, req.Force)
	return plugin.Holder(h), err
}
