package tank

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
)

// noSpace reports whether an operation failed because a disk or a quota is full.
func noSpace(err error) bool {
	return errdefs.IsResourceExhausted(err) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// endPulls ends the holds of unfinished pulls that do not run, and deletes what no other holder keeps. It
// returns the references of these pulls. It logs its errors, because its caller returns the lack of space
// as the error.
func (t *Tank) endPulls(ctx context.Context) (refs []string) {
	t.shortage.Lock()
	defer t.shortage.Unlock()
	defer t.reserve.Keep()
	err := t.spendUpdate(func(tx *metadata.Tx) (err error) {
		refs, err = t.endIdle(tx)
		return err
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("full disk: cannot give up what unfinished pulls have downloaded")
		return nil
	}
	_, blobs := t.content.Sweep(ctx)
	_, dirs := t.snapshots.Sweep(ctx)
	if err := errors.Join(blobs, dirs); err != nil {
		log.G(ctx).WithError(err).Warn("full disk: sweep")
	}
	return refs
}

// endIdle ends the pulls that do not run, and returns their references.
func (t *Tank) endIdle(tx *metadata.Tx) (refs []string, err error) {
	pulls, err := tx.Pulls()
	if err != nil {
		return nil, err
	}
	for _, p := range pulls {
		t.mu.Lock()
		running := t.pulls[p.Ref]
		t.mu.Unlock()
		if running {
			continue
		}
		if err := tx.EndPull(p.Ref); err != nil {
			return nil, err
		}
		refs = append(refs, p.Ref)
	}
	return refs, nil
}

// makeRoom frees what unfinished pulls keep, because the disk has no room for a download. It reports
// whether there may be room now.
func (t *Tank) makeRoom(ctx context.Context) bool {
	t.endPulls(ctx)
	return ctx.Err() == nil
}

// giveUp ends the hold of a pull that failed for lack of space, because its downloads would keep the disk
// full for a day. It reports whether the holds of other pulls ended as well, so that another attempt may
// succeed.
func (p *pull) giveUp(ctx context.Context, err error) (again bool) {
	if err == nil || !noSpace(err) || p.opts.Offline {
		return false
	}
	for _, ref := range p.t.endPulls(ctx) {
		again = again || ref != p.ref.String()
	}
	return again
}
