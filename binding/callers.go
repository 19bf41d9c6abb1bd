package binding

import (
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// Caller is what is known of who acts for a holder.
type Caller struct {
	Database  string    // the path of its database; "" when it has none or that is not known
	Seen      time.Time // when it was connected last
	Connected bool      // it is connected, or was since this process started and still runs
}

// Callers returns who acts for each holder that is bound.
func (b *Binder) Callers() (map[metadata.Holder]Caller, error) {
	bs, err := b.bindings()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	callers := map[metadata.Holder]Caller{}
	for _, r := range bs {
		if latest, _ := metadata.BindingOf(bs, r.Holder); latest.ID == r.ID {
			callers[r.Holder] = Caller{Database: r.Path, Seen: r.Seen, Connected: b.connected(r.Holder, nil)}
		}
	}
	return callers, nil
}

func (b *Binder) bindings() (bs []metadata.Binding, err error) {
	err = b.db.View(func(tx *metadata.Tx) (err error) {
		bs, err = tx.Bindings()
		return err
	})
	return bs, err
}

// Free returns errdefs.ErrFailedPrecondition while a containerd that acts for a holder is connected. One that runs and uses
// Tank no more does not matter: a machine that goes back to overlayfs has one.
func (b *Binder) Free(h metadata.Holder) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.connected(h, nil) {
		return fmt.Errorf("its containerd is connected: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Released says that what a holder held was given up, so that the next new database may have the holder. A database
// that acted for it and comes back has lost what it had, and must not take the snapshots of another one for its own.
func (b *Binder) Released(h metadata.Holder) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.db.Update(func(tx *metadata.Tx) error {
		return b.unbind(tx, h, func(r metadata.Binding) error {
			r.Holder, r.Settled = metadata.ContainerdHolder(r.ID), true
			return tx.PutBinding(r)
		})
	})
}

// unbind calls do for the bindings of a holder, except those of processes that are connected.
func (b *Binder) unbind(tx *metadata.Tx, h metadata.Holder, do func(metadata.Binding) error) error {
	bs, err := tx.Bindings()
	if err != nil {
		return err
	}
	for _, r := range bs {
		used := false
		for _, s := range b.sessions {
			used = used || s.binding.ID == r.ID && b.live(s)
		}
		if r.Holder == h && !used {
			if err := do(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget forgets who acted for a holder.
func (b *Binder) forget(tx *metadata.Tx, h metadata.Holder) error {
	return b.unbind(tx, h, func(r metadata.Binding) error { return tx.DeleteBinding(r.ID) })
}

// HandOver gives all that the holder from holds to the holder to: the operator knows that the containerd of from is now
// that of to. errdefs.ErrFailedPrecondition while a containerd acts for from, errdefs.ErrInvalidArgument when one is
// not the holder of a containerd.
func (b *Binder) HandOver(from, to metadata.Holder) error {
	if !from.IsContainerd() || !to.IsContainerd() || from == to {
		return fmt.Errorf("holder %s: hand over to %s: not two containerds: %w", from, to, errdefs.ErrInvalidArgument)
	}
	bs, err := b.bindings()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, _ := metadata.BindingOf(bs, from)
	r.Holder = from
	if b.inUse(r, nil) {
		return fmt.Errorf("holder %s: its containerd is connected or runs: %w", from, errdefs.ErrFailedPrecondition)
	}
	return b.opts.HandOver(from, to, func(tx *metadata.Tx) error { return b.forget(tx, from) })
}

// names joins holders for a log.
func names(hs []metadata.Holder) string {
	var all []string
	for _, h := range hs {
		all = append(all, string(h))
	}
	return strings.Join(all, ", ")
}
