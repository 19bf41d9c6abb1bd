package tank

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/documents"
	"github.com/tank-snapshotter/tank/internal/repair"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver"
)

func (f Fault) Error() string { return f.Message }

// Unwrap returns the error of class errdefs.ErrDataLoss.
func (f Fault) Unwrap() error {
	if f.Err == nil {
		return errdefs.ErrDataLoss
	}
	return f.Err
}

// Check compares everything on the disk with its records and seals; see [Service].
func (t *Tank) Check(ctx context.Context, report func(Fault)) error {
	r := t.repairable()
	convert := converter(r)
	return repair.Check(ctx, r, func(f metadata.Fault) { report(convert(f)) })
}

// Repair mends what Check finds; see [Service].
func (t *Tank) Repair(ctx context.Context, opts *RepairOptions) (*RepairResult, error) {
	// One repair at a time, because two would do the same work. No reference is a key like this.
	unlock, err := t.refs.LockContext(ctx, "repair")
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := &pull{t: t}
	if opts != nil {
		p.opts = PullOptions{
			PlainHTTP: opts.PlainHTTP, HostsDir: opts.HostsDir, HostsFiles: opts.HostsFiles,
			Credentials: opts.Credentials, Progress: opts.Progress, Log: opts.Log,
		}
	}
	r := t.repairable()
	r.Log, r.Progress = p.log, p.progress()
	if opts == nil || !opts.Offline {
		var done func()
		if r.Registries, done, err = p.resolver(); err != nil {
			return nil, err
		}
		defer done()
	}
	res, err := repair.Run(ctx, r)
	if err != nil {
		return nil, err
	}
	convert := converter(r)
	out := &RepairResult{Mended: []Fault{}, Remains: []Fault{}}
	for _, f := range res.Mended {
		out.Mended = append(out.Mended, convert(f))
	}
	for _, f := range res.Remains {
		remains := convert(f.Fault)
		if f.Reason != nil {
			remains.Reason = f.Reason.Error()
		}
		out.Remains = append(out.Remains, remains)
	}
	return out, nil
}

func (t *Tank) repairable() *repair.Root {
	return &repair.Root{
		DB: t.db, Content: t.content, Snapshots: t.snapshots, KeepLayers: t.daemon, Copies: t.copies,
		CheckImage: func(ctx context.Context, i metadata.Image, report func(metadata.Fault)) error {
			return documents.Check(ctx, t.content, i, report)
		},
		Held: t.whileHeld, Log: func(string, ...any) {},
		Sweep: func(ctx context.Context) error {
			t.images.Lock()
			defer t.images.Unlock()
			return t.sweep(ctx, &Reclaimed{})
		},
	}
}

// converter returns a function that returns a fault with advice.
func converter(r *repair.Root) func(metadata.Fault) Fault {
	advice := map[metadata.Fault]string{} // a directory may have a thousand faults
	return func(f metadata.Fault) Fault {
		key := f
		key.Err = nil
		if _, known := advice[key]; !known {
			advice[key] = r.Advice(f)
		}
		what, name := f.Subject()
		return Fault{
			What: what, Name: name, Message: f.Error(), Err: f,
			Damage: string(f.Damage), Mend: string(f.Mend), Advice: advice[key],
		}
	}
}

// whileHeld calls fn while no pull of a reference runs, with the holder of such a pull. It ends what the
// holder holds, unless a pull of the reference was unfinished before.
func (t *Tank) whileHeld(ctx context.Context, ref string, fn func(metadata.Holder) error) error {
	parsed, err := resolver.ParseReference(ref)
	if err != nil {
		return err
	}
	p := &pull{t: t, ref: parsed, holder: metadata.PullHolder(parsed.String())}
	unlock, err := p.turn(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	unfinished := false
	if err := t.db.View(func(tx *metadata.Tx) error {
		unfinished = tx.HoldsAny(p.holder)
		return nil
	}); err != nil {
		return err
	}
	err = p.whileHeld(func() error { return fn(p.holder) })
	if unfinished {
		return err
	}
	return errors.Join(err, t.spendUpdate(func(tx *metadata.Tx) error { return tx.EndPull(parsed.String()) }))
}
