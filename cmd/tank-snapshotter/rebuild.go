package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/systemd"
)

// rebuildCommand makes the database of the root again, for `check --rebuild`. It fails if another process owns
// the root.
func (c *cli) rebuildCommand(ctx context.Context) error {
	if c.address != "" {
		return usageError{errors.New("--rebuild and --address exclude each other: a daemon has its database open")}
	}
	s, err := c.settingsFor(ctx, false)
	if err != nil {
		return err
	}
	root, err := c.chooseRoot(ctx, s)
	if err != nil {
		return err
	}
	r, err := tank.Rebuild(ctx, root, nil)
	if errdefs.IsUnavailable(err) {
		return hinted{localError{err}, "Stop the process that owns the root first."}
	}
	if err != nil {
		return rootError(err)
	}
	reportRebuilt(os.Stderr, r)
	return nil
}

// reportRebuilt prints what a rebuild recorded, and what happened to the rest.
func reportRebuilt(w io.Writer, r tank.Rebuilt) {
	printable.Fprintf(w, "rebuilt: %d images, %d blobs, %d layers, %d rootfs, %d snapshots\n",
		r.Images, r.Blobs, r.Layers, r.Rootfs, r.Snapshots)
	if !r.Names {
		printable.Fprintf(w, "images.records and index.json could not be read: images that only they named are "+
			"missing. Their blobs are kept, so that a new pull of them downloads little. A copy of index.json is "+
			"below lost/.\n")
	}
	if r.Kept != "" {
		printable.Fprintf(w, "The holder %[1]q keeps everything that belongs to no known image: `holders` "+
			"shows how much, and `release %[1]s` gives it up.\n", r.Kept)
	}
	if r.Lost > 0 {
		printable.Fprintf(w, "%d directories and files without a record are below lost/: files that containers "+
			"wrote, and damaged directories and files.\n", r.Lost)
	}
}

const (
	// A rebuild asks the service manager for rebuildExtension more every rebuildNotice.
	rebuildExtension = 2 * time.Minute
	rebuildNotice    = 10 * time.Second
)

// rebuildRoot makes the database of a root again before a daemon serves it. damage is the error with which
// opening the root failed; it is logged, or returned if the root cannot be rebuilt.
func rebuildRoot(ctx context.Context, root string, damage error) error {
	log.G(ctx).WithError(damage).WithField("root", root).
		Warn("the database is lost or damaged: it is made again from what is in the root, which may take long")
	began := time.Now()
	progress, done := notifyOfRebuild(ctx)
	defer done()
	r, err := tank.Rebuild(ctx, root, &tank.RebuildOptions{Unattended: true, Progress: progress})
	switch {
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return ctx.Err()
	case errdefs.IsUnavailable(err):
		return err
	case err != nil:
		return hinted{fmt.Errorf("%w; the daemon does not make the database again: %w", damage, err),
			"To make the database again from what can be read now: tank-snapshotter check --rebuild --root " + root}
	}
	logRebuilt(ctx, root, r, time.Since(began))
	return nil
}

// notifyOfRebuild keeps the service manager from ending this process, and informs it about what the process does,
// until done is called: reading all blobs and layers takes long. progress is called with each step.
func notifyOfRebuild(ctx context.Context) (progress func(step string), done func()) {
	var step atomic.Pointer[string]
	notify := func() {
		systemd.ExtendTimeout(ctx, rebuildExtension)
		if now := step.Load(); now != nil {
			systemd.Notify(ctx, "STATUS=Making the database again: "+*now)
		}
	}
	notify()
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(rebuildNotice)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				notify()
			}
		}
	}()
	progress = func(what string) {
		step.Store(&what)
		notify()
		log.G(ctx).Info("rebuild: " + what)
	}
	return progress, func() {
		close(ended)
		<-stopped
	}
}

// logRebuilt logs what a rebuild recorded, and what happened to the rest.
func logRebuilt(ctx context.Context, root string, r tank.Rebuilt, took time.Duration) {
	fields := log.Fields{
		"root": root, "images": r.Images, "blobs": r.Blobs, "layers": r.Layers, "rootfs": r.Rootfs,
		"snapshots": r.Snapshots, "took": took.Round(time.Millisecond),
	}
	if r.Former != "" {
		fields["former"] = r.Former
	}
	log.G(ctx).WithFields(fields).Warn("the database was made again")
	if r.Lost > 0 {
		log.G(ctx).WithFields(log.Fields{"number": r.Lost, "moved_to": r.LostIn}).
			Warn("rebuild: no record could be made of some directories and files: they were moved")
	}
	if !r.Names {
		log.G(ctx).
			Warn("rebuild: images.records and index.json could not be read: images that only they named are missing")
	}
	if r.Kept != "" {
		log.G(ctx).WithField("holder", r.Kept).Warn("rebuild: this holder keeps what belongs to no known image")
	}
}
