package main

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank"
)

// local is the service of a root that this process owns.
type local struct {
	tank *tank.Tank
	root string
}

var _ service = (*local)(nil)

// openLocal owns the root. errdefs.ErrUnavailable while another process does.
func openLocal(root string, daemon bool) (*local, error) {
	t, err := tank.Open(root, &tank.Options{Daemon: daemon})
	if errdefs.IsFailedPrecondition(err) {
		return nil, localError{err} // somebody else's root: no content is at fault
	}
	if err != nil {
		return nil, err
	}
	return &local{tank: t, root: t.Root()}, nil
}

// Close gives the root up.
func (l *local) Close() error { return l.tank.Close() }

func (l *local) Pull(ctx context.Context, req pullRequest, progress func(progressEvent)) (*pulledImage, error) {
	opts := &tank.PullOptions{
		Offline: req.Offline, NoRootfs: req.NoRootfs, NoSync: req.NoSync, PlainHTTP: req.Plain, HostsDir: req.HostsDir, Platform: req.Platform,
		Log: func(line string) { log.G(ctx).Info(line) },
	}
	if progress != nil {
		opts.Progress = func(e tank.Event) {
			progress(progressEvent{
				Digest: e.Descriptor.Digest.String(), Total: e.Descriptor.Size, Offset: e.Offset, Done: e.Done, Cached: e.Cached,
			})
		}
	}
	i, err := l.tank.Pull(ctx, req.Ref, opts)
	if err != nil {
		return nil, err
	}
	return &pulledImage{
		Ref: i.Ref, Digest: i.Digest.String(), Manifest: i.Manifest.String(), Rootfs: i.Rootfs, Config: i.Config, Cached: i.Cached,
	}, nil
}

func (l *local) Images(ctx context.Context) ([]imageInfo, error) {
	images, err := l.tank.Images(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]imageInfo, len(images))
	for n, i := range images {
		infos[n] = imageInfo{
			Ref: i.Ref, Digest: i.Digest.String(), Manifest: i.Manifest.String(), Platform: i.Platform, Rootfs: i.Rootfs,
			Size: i.Size, Untagged: i.Untagged, Created: i.Created,
		}
	}
	return infos, nil
}

func (l *local) Remove(ctx context.Context, ref string) error { return l.tank.Remove(ctx, ref) }

func (l *local) GC(ctx context.Context) (reclaimed, error) {
	r, err := l.tank.GC(ctx)
	return reclaimed(r), err
}

func (l *local) Check(ctx context.Context) ([]fault, error) {
	var faults []fault
	err := l.tank.Check(ctx, func(err error) { faults = append(faults, fault{Message: err.Error()}) })
	return faults, err
}
