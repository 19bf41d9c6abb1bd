package tank

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/catalog"
	"github.com/tank-snapshotter/tank/internal/documents"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/metadata"
)

// recorded returns the record of the reference, or what other references have under its digest if the
// record lacks the platform.
func (p *pull) recorded() (rec catalog.Entry, err error) {
	err = p.t.db.View(func(tx *metadata.Tx) error {
		rec, err = catalog.Find(tx, p.ref)
		if err != nil || len(rec.Borrowed) > 0 || p.ref.Digest() == "" || p.platform(rec.Image) != nil {
			return err
		}
		if others, err := catalog.Borrow(tx, p.ref); err != nil || p.platform(others.Image) != nil {
			rec = others
			return err
		}
		return nil
	})
	return rec, err
}

// platform returns the recorded platform that was asked for, or that an earlier pull chose for the same
// request; nil if there is none. It does not choose another suitable platform, because the index may have a
// better one.
func (p *pull) platform(rec metadata.Image) *metadata.Platform {
	var exact *metadata.Platform
	for i := range rec.Platforms {
		c := &rec.Platforms[i]
		if slices.Contains(c.RequestedAs, p.want.String()) {
			return c
		}
		if exact == nil && p.want.Exactly(c.Platform) {
			exact = c
		}
	}
	return exact
}

// missing returns what the root lacks of the image; nil if it lacks nothing.
func (p *pull) missing(rec metadata.Image) *NotCached {
	c := p.platform(rec)
	if c == nil {
		return &NotCached{
			Ref: p.ref.String(), Missing: "platform " + platformName(p.opts.Platform),
			Here: catalog.PlatformNames(rec.Platforms),
		}
	}
	for _, d := range catalog.PlatformBlobs(rec.Target, *c) {
		if size, ok := p.t.content.Size(d.Digest); !ok || size != d.Size {
			return p.lacks("blob " + d.Digest.String())
		}
	}
	return nil
}

func (p *pull) lacks(what string) *NotCached { return &NotCached{Ref: p.ref.String(), Missing: what} }

func platformName(s string) string {
	if s == "" {
		return platforms.Format(platforms.DefaultSpec())
	}
	return s
}

// errTurn is returned if the answer needs work during which no other pull of the reference may run.
var errTurn = errors.New("another pull of the reference may run")

// cachedInTurn is like cached, but waits for other pulls of the reference if there is work to do. It waits
// without the lock that keeps images from being removed, because the pull that it waits for may need that
// lock.
func (p *pull) cachedInTurn(ctx context.Context, target digest.Digest) (*Image, *NotCached, error) {
	img, missing, err := p.cached(ctx, target)
	if errors.Is(err, errTurn) {
		unlock, terr := p.turn(ctx)
		if terr != nil {
			return nil, nil, terr
		}
		defer unlock()
		p.hasTurn = true
		defer func() { p.hasTurn = false }()
		img, missing, err = p.cached(ctx, target)
	}
	if err == nil && missing == nil {
		// Without a lock, because the caller's function may do anything.
		p.log("using cached %s (%s)", p.ref, img.Digest)
	}
	return img, missing, err
}

// cached answers from the record, or returns what is missing: if the record is not complete, or is not for
// target ("" accepts any). It assembles a rootfs that is missing or damaged from the blobs. No image is
// removed meanwhile.
func (p *pull) cached(ctx context.Context, target digest.Digest) (img *Image, missing *NotCached, err error) {
	p.t.images.RLock()
	defer p.t.images.RUnlock()
	rec, err := p.recorded()
	switch {
	case errdefs.IsNotFound(err):
		return nil, p.lacks("image"), nil
	case err != nil:
		return nil, nil, err
	case target != "" && target != rec.Target.Digest:
		return nil, p.lacks("image " + target.String()), nil
	}
	if missing := p.missing(rec.Image); missing != nil {
		return nil, missing, nil
	}
	img, err = p.answer(ctx, rec)
	if err == nil && !p.opts.NoSync {
		err = p.t.snapshots.Layers().Sync(ctx) // an earlier pull may not have waited for it
	}
	if err == nil {
		e := observe.Event{Kind: observe.Hit, Subject: p.ref.String()}
		observe.Note(ctx, p.t.observe, e, observe.Result{})
	}
	return img, nil, err
}

// answer returns the image of a complete record.
func (p *pull) answer(ctx context.Context, rec catalog.Entry) (*Image, error) {
	c := p.platform(rec.Image)
	img := &Image{Ref: rec.Ref, Digest: rec.Target.Digest, Manifest: c.Manifest.Digest, Cached: true}
	var err error
	if img.Config, err = documents.Readable(ctx, p.t.content, rec.Image, *c); err != nil {
		return nil, fmt.Errorf("image %s: %w", p.ref, err)
	}
	if len(rec.Borrowed) > 0 && !p.t.readOnly {
		return img, p.keep(ctx, rec, *c, img)
	}
	if !p.opts.NoRootfs {
		img.Rootfs, err = p.t.snapshots.Layers().Rootfs(ctx, metadata.ImageHolder(rec.Ref), c.Manifest.Digest)
	}
	if err == nil && !rec.Untagged && (p.opts.NoRootfs || c.Rootfs) {
		return img, nil
	}
	switch {
	case err != nil && !errdefs.IsNotFound(err):
		return nil, err
	case p.t.readOnly && err == nil:
		return img, nil // what the record lacks cannot be added
	case p.t.readOnly:
		return nil, &NotCached{Ref: p.ref.String(), Missing: "rootfs"}
	}
	if !p.hasTurn {
		return nil, errTurn
	}
	err = p.whileHeld(func() error {
		if !p.opts.NoRootfs && img.Rootfs == "" {
			layers, err := p.unpack(ctx, *c)
			if err != nil {
				return err
			}
			if img.Rootfs, err = p.assemble(ctx, *c, layers); err != nil {
				return err
			}
		}
		return p.record(rec.Target, nil, *c)
	})
	return img, err
}

// keep records an image under the reference that the root has under other references, so that it stays when
// those are removed.
func (p *pull) keep(ctx context.Context, rec catalog.Entry, c metadata.Platform, img *Image) error {
	if !p.hasTurn {
		return errTurn
	}
	if err := p.whileHeld(func() (err error) {
		if !p.opts.NoRootfs {
			img.Rootfs, err = p.t.snapshots.Layers().Rootfs(ctx, p.holder, c.Manifest.Digest)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		if img.Rootfs == "" || p.t.daemon {
			layers, err := p.unpack(ctx, c)
			if err == nil && !p.opts.NoRootfs && img.Rootfs == "" {
				img.Rootfs, err = p.assemble(ctx, c, layers)
			}
			if err != nil {
				return err
			}
		}
		return p.record(rec.Target, rec.Indexes, c)
	}); err != nil {
		return err
	}
	return p.t.writeLayout()
}
