package tank

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/internal/catalog"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/hostsfiles"
	"github.com/tank-snapshotter/tank/internal/platform"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// renewEvery is the interval in which a running pull renews its hold.
const renewEvery = time.Minute

// NotCached is the error of an offline pull, and says what is missing. Its class is errdefs.ErrNotFound.
type NotCached struct {
	Ref     string   // normalized
	Missing string   // "image", "platform OS/ARCH" or "blob DIGEST"
	Here    []string // the platforms of the image that the root has, if the platform is missing
}

func (e *NotCached) Error() string {
	s := fmt.Sprintf("image %s: not cached: %s is missing", e.Ref, e.Missing)
	if len(e.Here) > 0 {
		s += ": here is " + strings.Join(e.Here, ", ")
	}
	return s
}

// Is reports whether target is errdefs.ErrNotFound, the class of the error.
func (e *NotCached) Is(target error) bool { return target == errdefs.ErrNotFound }

// Cause returns the cause that the command line gives advice for.
func (e *NotCached) Cause() cause.Cause { return cause.Cause{Kind: cause.NotCached, Subject: e.Ref} }

// pull is one call of Pull.
type pull struct {
	t      *Tank
	ref    resolver.Reference
	opts   PullOptions
	want   platform.Wanted
	holder metadata.Holder
	// hasTurn is true while no other pull of the reference can run. Then only this pull uses the pull's holder.
	hasTurn bool
}

// Pull fetches an image and assembles its root filesystem; see [Service].
func (t *Tank) Pull(ctx context.Context, ref string, opts *PullOptions) (*Image, error) {
	p := &pull{t: t}
	if opts != nil {
		p.opts = *opts
	}
	var err error
	if p.ref, err = resolver.ParseReference(ref); err != nil {
		return nil, err
	}
	if p.want, err = platform.Parse(p.opts.Platform); err != nil {
		return nil, err
	}
	if p.opts.Offline && p.opts.Refresh {
		return nil, fmt.Errorf("image %s: offline and refresh exclude each other: %w",
			p.ref, errdefs.ErrInvalidArgument)
	}
	p.holder = metadata.PullHolder(p.ref.String())
	img, err := p.run(ctx)
	if p.giveUp(ctx, err) {
		if img, err = p.run(ctx); err != nil {
			p.giveUp(ctx, err)
		}
	}
	if err != nil && noSpace(err) {
		err = t.fullDisk(ctx, err)
	}
	return img, err
}

func (p *pull) log(format string, args ...any) {
	if p.opts.Log != nil {
		p.opts.Log(fmt.Sprintf(format, args...))
	}
}

// progress returns what reports the resolver's events to the caller.
func (p *pull) progress() func(resolver.Event) {
	if p.opts.Progress == nil {
		return nil
	}
	return func(e resolver.Event) {
		p.opts.Progress(Event{
			Digest: e.Descriptor.Digest, Offset: e.Offset, Total: e.Descriptor.Size, Done: e.Done, Cached: e.Cached,
		})
	}
}

func (p *pull) run(ctx context.Context) (*Image, error) {
	if p.opts.Offline {
		img, missing, err := p.cachedInTurn(ctx, "")
		if missing != nil {
			return nil, missing
		}
		return img, err
	}
	if d := p.ref.Digest(); d != "" && !p.opts.Refresh { // a digest always names the same image
		if img, missing, err := p.cachedInTurn(ctx, d); missing == nil {
			return img, err
		}
	}
	r, done, err := p.resolver()
	if err != nil {
		return nil, err
	}
	defer done()
	target, err := r.Resolve(ctx, p.ref)
	if err != nil {
		return nil, err
	}
	unlock, err := p.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p.hasTurn = true
	if !p.opts.Refresh {
		if img, missing, err := p.cachedInTurn(ctx, target.Digest); missing == nil {
			return img, err
		}
	}
	return p.fetch(ctx, r, target)
}

// resolver returns a resolver with the caller's credentials and hosts files, until done is called.
func (p *pull) resolver() (r *resolver.Resolver, done func(), err error) {
	hostsDir, remove, err := hostsfiles.Dir(p.t.root, p.opts.HostsDir, p.opts.HostsFiles)
	if err != nil {
		return nil, nil, err
	}
	r, err = resolver.New(&resolver.Options{
		Observe:   p.t.observe,
		PlainHTTP: p.opts.PlainHTTP, HostsDir: hostsDir, Credentials: p.opts.Credentials,
		Tokens: p.t.tokens, InFlight: p.t.flights,
		Connections: &p.t.connections, Warn: func(text string) { p.log("%s%s", WarningPrefix, text) },
	})
	if err != nil {
		remove()
		return nil, nil, err
	}
	return r, func() { r.Close(); remove() }, nil
}

// turn waits until no other pull of the reference runs, and keeps others waiting until unlock is called.
func (p *pull) turn(ctx context.Context) (unlock func(), err error) {
	if unlock, err = p.t.refs.LockContext(ctx, p.ref.String()); err != nil {
		return nil, fmt.Errorf("image %s: %w", p.ref, err)
	}
	return unlock, nil
}

// whileHeld runs fn while it renews the hold of the pull's holder, so that what fn gathers is not collected.
func (p *pull) whileHeld(fn func() error) error {
	ref := p.ref.String()
	renew := func() error {
		return p.t.db.Update(func(tx *metadata.Tx) error { return tx.Renew(ref, time.Now()) })
	}
	p.t.mu.Lock()
	p.t.pulls[ref] = true
	p.t.mu.Unlock()
	defer func() {
		p.t.mu.Lock()
		defer p.t.mu.Unlock()
		delete(p.t.pulls, ref)
	}()
	if err := renew(); err != nil {
		return err
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if err := renew(); err != nil {
					log.L.WithError(err).Warnf("pull %s: renewal", ref)
				}
			}
		}
	}()
	err := fn()
	close(stop)
	<-done
	return err
}

// fetch downloads what is missing, unpacks layers meanwhile, and records the image.
func (p *pull) fetch(ctx context.Context, r *resolver.Resolver, target ocispec.Descriptor) (*Image, error) {
	p.t.reserve.Keep()
	p.log("pulling %s", p.ref)
	var img *Image
	err := p.whileHeld(func() error {
		u, fetching := newUnpacking(ctx, p)
		fetched, err := r.Fetch(fetching, p.t.content.For(p.holder), p.ref, target, p.want.Spec(),
			&resolver.FetchOptions{
				Progress: p.progress(), Refresh: p.opts.Refresh,
				OnImage: func(i *resolver.Image) error { return u.image(fetching, i) },
				OnLayer: func(blob ocispec.Descriptor) error { return u.layer(fetching, blob) },
			})
		if err := u.wait(err); err != nil {
			return err
		}
		if fetched.Warning != "" {
			p.log("%s%s", WarningPrefix, fetched.Warning)
		}
		c := platformOf(fetched)
		p.warnDropped(u.records(c))
		img = &Image{
			Ref: p.ref.String(), Digest: target.Digest, Manifest: fetched.Manifest.Digest,
			Config: fetched.ConfigBytes, Cached: fetched.Fetched == 0, Rootfs: u.rootfs,
		}
		if !p.opts.NoRootfs && img.Rootfs == "" {
			if img.Rootfs, err = p.assemble(ctx, c, u.records(c)); err != nil {
				return err
			}
		}
		return p.record(target, fetched.Indexes, c)
	})
	if err != nil {
		return nil, err
	}
	if !p.opts.NoSync {
		if err := p.t.snapshots.Layers().Sync(ctx); err != nil {
			return nil, err
		}
	}
	return img, p.t.writeLayout()
}

func platformOf(i *resolver.Image) metadata.Platform {
	return metadata.Platform{
		Platform: i.Platform, Manifest: i.Manifest, Config: i.Config, Layers: i.Layers, DiffIDs: i.DiffIDs, Exact: true,
	}
}

func (p *pull) assemble(ctx context.Context, c metadata.Platform, layers []metadata.Layer) (string, error) {
	path, err := p.t.snapshots.Layers().Assemble(ctx, p.holder, c.Manifest.Digest, layers, &layer.AssembleOptions{
		Consume: !p.t.daemon, NoSync: p.opts.NoSync,
	})
	if err != nil {
		return "", fmt.Errorf("image %s: %w", p.ref, err)
	}
	return path, nil
}

// record records the pulled platform. From then on the image holds it, and the pull's holder is gone.
func (p *pull) record(target ocispec.Descriptor, indexes []ocispec.Descriptor, c metadata.Platform) error {
	c.Rootfs = !p.opts.NoRootfs
	if want := p.want.String(); !p.want.Exactly(c.Platform) && !slices.Contains(c.RequestedAs, want) {
		c.RequestedAs = append(slices.Clip(c.RequestedAs), want)
	}
	return p.t.db.Update(func(tx *metadata.Tx) error {
		return catalog.Record(tx, catalog.Pulled{
			Ref: p.ref.String(), Target: target, Indexes: indexes, Platform: c, KeepLayers: p.t.daemon,
		})
	})
}
