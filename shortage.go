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

// endPulls gives up what unfinished pulls have gathered, and deletes what nothing else holds. A pull that runs, and one for which keep
// returns true, keeps its things. It reports whether there may be more room now. What fails is logged: whoever calls it is short of
// space already, and has an error of its own.
func (t *Tank) endPulls(ctx context.Context, keep func(ref string) bool) bool {
	t.shortage.Lock()
	defer t.shortage.Unlock()
	defer t.reserve.Keep()
	err := t.spendUpdate(func(tx *metadata.Tx) error { return t.endIdle(tx, keep) })
	if err != nil {
		log.G(ctx).WithError(err).Warn("full disk: unfinished pulls keep what they gathered")
		return false
	}
	_, blobs := t.content.Sweep(ctx)
	_, dirs := t.snapshots.Sweep(ctx)
	if err := errors.Join(blobs, dirs); err != nil {
		log.G(ctx).WithError(err).Warn("full disk: sweep")
	}
	return true
}

// endIdle ends the pulls that do not run, except those that keep returns true for.
func (t *Tank) endIdle(tx *metadata.Tx, keep func(ref string) bool) error {
	pulls, err := tx.Pulls()
	if err != nil {
		return err
	}
	for _, p := range pulls {
		t.mu.Lock()
		running := t.pulls[p.Ref]
		t.mu.Unlock()
		if running || keep(p.Ref) {
			continue
		}
		if err := tx.EndPull(p.Ref); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom is called when the disk has no room for a download: unfinished pulls that do not run have to make it.
func (t *Tank) makeRoom(ctx context.Context) bool {
	return t.endPulls(ctx, func(string) bool { return false })
}

// giveUp ends a pull that failed. What it gathered may be resumed for a day, but not at the cost of a full disk.
func (p *pull) giveUp(ctx context.Context, err error) {
	if noSpace(err) && !p.opts.Offline {
		p.t.endPulls(ctx, func(ref string) bool { return ref != p.ref.String() })
	}
}
