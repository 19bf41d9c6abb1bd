package tank

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/mounts"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/usage"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

// Holders lists what each holder keeps; see [Service].
func (t *Tank) Holders(ctx context.Context) ([]HolderInfo, error) {
	names := map[metadata.Holder]bool{metadata.Containerd: true}
	err := t.db.View(func(tx *metadata.Tx) error {
		for _, h := range tx.AllHolders() {
			names[h] = !isSnapshotHolder(h)
		}
		pulls, err := tx.Pulls()
		for _, p := range pulls {
			names[metadata.PullHolder(p.Ref)] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	callers, err := t.binder.Callers()
	if err != nil {
		return nil, err
	}
	for h := range callers {
		names[h] = true
	}
	var infos []HolderInfo
	measured := usage.Sizes{}
	for h, listed := range names {
		if !listed {
			continue
		}
		switch info, err := t.holder(ctx, h, measured); {
		case errdefs.IsNotFound(err): // no containerd ever used the root, or the holder was released meanwhile
		case err != nil:
			return nil, err
		default:
			c := callers[h]
			info.Database, info.Seen, info.Connected = c.Database, c.Seen, c.Connected
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b HolderInfo) int { return strings.Compare(a.Holder, b.Holder) })
	return infos, nil
}

func isSnapshotHolder(h metadata.Holder) bool {
	kind, _ := h.Split()
	return kind == metadata.HolderSnapshot
}

// holder returns what h keeps, or errdefs.ErrNotFound if there is no such holder. It measures the disk after
// the transaction, because it walks through all files.
func (t *Tank) holder(ctx context.Context, h metadata.Holder, measured usage.Sizes) (HolderInfo, error) {
	info := HolderInfo{Holder: string(h)}
	kind, ref := h.Split()
	known := kind == metadata.HolderPull
	var keeps *usage.Usage
	if err := t.db.View(func(tx *metadata.Tx) (err error) {
		pulls, err := tx.Pulls()
		if err != nil {
			return err
		}
		known = known && slices.ContainsFunc(pulls, func(p metadata.Pull) bool { return p.Ref == ref })
		keeps, err = usage.Of(tx, t.root, h)
		return err
	}); err != nil {
		return info, err
	}
	info.Blobs, info.Layers, info.Rootfs, info.Snapshots = keeps.Blobs, keeps.Layers, keeps.Rootfs, keeps.Snapshots
	for _, k := range keeps.Paths {
		size, err := measured.Of(ctx, k.Path)
		if ctx.Err() != nil {
			return info, fmt.Errorf("holder %s: %w", h, context.Cause(ctx))
		}
		if err != nil { // not fatal, because a release has to work on a disk with faults
			log.G(ctx).WithError(err).Warnf("holder %s: a size is not known", printable.Text(string(h)))
		}
		info.add(size, k.Exclusive)
	}
	ingests, err := t.content.For(h).ListStatuses(ctx)
	if err != nil {
		return info, err
	}
	for _, i := range ingests {
		info.Ingests++
		info.add(i.Offset, true)
	}
	if !known && info == (HolderInfo{Holder: info.Holder}) {
		return info, cause.Mark(fmt.Errorf("holder %s: %w", h, errdefs.ErrNotFound), cause.Holder, "")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	info.Running = known && t.pulls[ref]
	return info, nil
}

func (i *HolderInfo) add(size int64, exclusive bool) {
	i.Bytes += size
	if exclusive {
		i.Exclusive += size
	}
}

// notMounted returns errdefs.ErrFailedPrecondition while something that only h holds is mounted anywhere,
// because containers run on it.
func (t *Tank) notMounted(h metadata.Holder) error {
	var keeps *usage.Usage
	if err := t.db.View(func(tx *metadata.Tx) (err error) {
		keeps, err = usage.Of(tx, t.root, h)
		return err
	}); err != nil {
		return err
	}
	var dirs []string
	for _, path := range keeps.Exclusive() {
		dirs = append(dirs, strings.TrimPrefix(path, t.root+"/"))
	}
	at, err := mounts.Using(t.root, dirs)
	if err == nil && at != "" {
		err = fmt.Errorf("mounted at %s: %w", at, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Release gives up everything that a holder keeps; see [Service].
func (t *Tank) Release(ctx context.Context, holder string, opts *ReleaseOptions) (info HolderInfo, err error) {
	if opts == nil {
		opts = &ReleaseOptions{}
	}
	if opts.To != "" {
		return t.transfer(ctx, holder, opts.To)
	}
	h := normalized(metadata.Holder(holder))
	holder = string(h)
	if isSnapshotHolder(h) {
		return info, fmt.Errorf("holder %s: it goes with its snapshot: %w", h, errdefs.ErrInvalidArgument)
	}
	if info, err = t.holder(ctx, h, usage.Sizes{}); err != nil {
		return info, err
	}
	counted := t.countFreed()
	defer func() { info.Freed = counted() }()
	image, isImage := strings.CutPrefix(holder, string(metadata.ImageHolder("")))
	ref, isPull := strings.CutPrefix(holder, string(metadata.PullHolder("")))
	switch {
	case isImage:
		err = t.releaseImage(image)
	case isPull:
		err = t.releasePull(ref)
	default:
		if !opts.Force {
			if err = t.binder.Free(h); err == nil {
				err = t.notMounted(h)
			}
			if errdefs.IsFailedPrecondition(err) {
				err = cause.Mark(err, cause.InUse, "")
			}
		}
		if err == nil {
			err = t.releaseStore(ctx, h)
		}
		if err == nil && h.IsContainerd() {
			err = t.binder.Released(h)
		}
	}
	if err != nil {
		return info, fmt.Errorf("holder %s: %w", h, err)
	}
	defer t.reserve.Keep()
	return info, t.sweep(ctx, &Reclaimed{})
}

func (t *Tank) releaseImage(ref string) error {
	t.images.Lock()
	defer t.images.Unlock()
	if err := t.spendUpdate(func(tx *metadata.Tx) error { return tx.DeleteImage(ref) }); err != nil {
		return err
	}
	return t.reserve.Spend(t.writeLayout)
}

func (t *Tank) releasePull(ref string) error {
	return t.spendUpdate(func(tx *metadata.Tx) error {
		t.mu.Lock()
		running := t.pulls[ref]
		t.mu.Unlock()
		if running {
			return cause.Mark(fmt.Errorf("the pull runs: %w", errdefs.ErrFailedPrecondition), cause.Busy, "")
		}
		return tx.EndPull(ref)
	})
}

// transfer gives everything that the holder from keeps to the holder to, and returns what from kept. It
// returns errdefs.ErrNotFound if one of the holders does not exist, errdefs.ErrInvalidArgument if one is
// not a containerd's, and errdefs.ErrFailedPrecondition while the containerd of from is connected or runs.
func (t *Tank) transfer(ctx context.Context, from, to string) (HolderInfo, error) {
	info, err := t.holder(ctx, metadata.Holder(from), usage.Sizes{})
	if err != nil {
		return info, err
	}
	callers, err := t.binder.Callers()
	if err != nil {
		return info, err
	}
	if _, bound := callers[metadata.Holder(to)]; !bound && to != string(metadata.Containerd) {
		return info, cause.Mark(fmt.Errorf("holder %s: %w", to, errdefs.ErrNotFound), cause.Holder, "")
	}
	if err = t.binder.HandOver(metadata.Holder(from), metadata.Holder(to)); errdefs.IsFailedPrecondition(err) {
		err = cause.Mark(err, cause.Busy, "")
	}
	return info, err
}

// handOver gives everything that the holder of one containerd keeps to that of another, in the records and
// in ingest/.
func (t *Tank) handOver(from, to metadata.Holder, also func(*metadata.Tx) error) error {
	if err := t.snapshots.HandOver(from, to, also); err != nil {
		return err
	}
	return t.content.HandOver(from, to)
}

// releaseStore gives up the ingests, snapshots and blobs of h. After an interruption it may be called again.
func (t *Tank) releaseStore(ctx context.Context, h metadata.Holder) error {
	ingests, err := t.content.For(h).ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, i := range ingests {
		if err := t.content.For(h).Abort(ctx, i.Ref); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	var keys []string
	if err := t.db.View(func(tx *metadata.Tx) (err error) {
		keys, err = tx.HeldSnapshots(h)
		return err
	}); err != nil {
		return err
	}
	for _, key := range keys {
		if err := t.snapshots.For(h).Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return t.spendUpdate(func(tx *metadata.Tx) error { return tx.ReleaseAll(h) })
}

// countFreed starts to count the bytes that deletions free on the disk. end stops the count and returns it.
func (t *Tank) countFreed() (end func() int64) {
	blobs, dirs := t.content.Count(), t.snapshots.Count()
	return func() int64 { return blobs() + dirs() }
}

// Probe returns nil if the database answers a reader before ctx ends, and ctx's error otherwise.
func (t *Tank) Probe(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() { answer <- t.db.Probe() }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return errors.Join(errors.New("metadata: no answer"), ctx.Err())
	}
}

// normalized normalizes the reference in the holder of an image or a pull, because records have normalized
// references. It returns any other holder unchanged.
func normalized(h metadata.Holder) metadata.Holder {
	kind, name := h.Split()
	if kind != metadata.HolderImage && kind != metadata.HolderPull {
		return h
	}
	ref, err := resolver.ParseReference(name)
	switch {
	case err != nil:
		return h
	case kind == metadata.HolderImage:
		return metadata.ImageHolder(ref.String())
	}
	return metadata.PullHolder(ref.String())
}
