package binding

import (
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// Caller describes the containerd that acts for a holder.
type Caller struct {
	Database  string    // the path of its database; "" when it has none or the path is not known
	Seen      time.Time // when it was connected last
	Connected bool      // it is connected, or was since this process started and still runs
}

// Callers returns the caller of each holder that has a binding.
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
		bs, err = metadata.Bindings(tx)
		return err
	})
	return bs, err
}

// Free returns errdefs.ErrFailedPrecondition while a containerd that acts for a holder is connected. A containerd that
// runs without using Tank any more does not count: after a return to overlayfs there is one.
func (b *Binder) Free(h metadata.Holder) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.connected(h, nil) {
		return fmt.Errorf("its containerd is connected: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Released is called after everything that a holder held was given up, so that the next new database may get the
// holder. If a database that acted for it comes back, it has lost what it had, and must not take over another holder.
func (b *Binder) Released(h metadata.Holder) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.changed()
	return b.db.Update(func(tx *metadata.Tx) error {
		return b.unbind(tx, h, func(r metadata.Binding) error {
			r.Holder, r.Recognized = metadata.ContainerdHolder(r.ID), true
			return metadata.PutBinding(tx, r)
		})
	})
}

// unbind calls do for each binding of a holder whose process is not connected.
func (b *Binder) unbind(tx *metadata.Tx, h metadata.Holder, do func(metadata.Binding) error) error {
	bs, err := metadata.Bindings(tx)
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

// forget deletes the bindings of a holder whose processes are not connected.
func (b *Binder) forget(tx *metadata.Tx, h metadata.Holder) error {
	return b.unbind(tx, h, func(r metadata.Binding) error { return metadata.DeleteBinding(tx, r.ID) })
}

// HandOver gives everything that the holder from holds to the holder to, because the operator knows that both belong to
// the same containerd. It returns errdefs.ErrFailedPrecondition while a containerd acts for from, and
// errdefs.ErrInvalidArgument when one of them is not the holder of a containerd.
func (b *Binder) HandOver(from, to metadata.Holder) error {
	if !from.IsContainerd() || !to.IsContainerd() || from == to {
		return fmt.Errorf("holder %s: hand over to %s: they must be the holders of two containerds: %w",
			from, to, errdefs.ErrInvalidArgument)
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
	defer b.changed()
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
