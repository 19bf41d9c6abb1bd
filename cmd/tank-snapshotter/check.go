package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/printable"
)

func (c *cli) checkCommand() *cobra.Command {
	var asJSON, rebuild bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare all files of the root with the records and checksums",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			if rebuild {
				if err := c.rebuild(cmd.Context()); err != nil {
					return err
				}
			}
			return c.check(cmd, asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	cmd.Flags().BoolVar(&rebuild, "rebuild", false, "first make the database again, from its readable parts "+
		"and the directories; no other process may own the root, so stop its daemon")
	return cmd
}

func (c *cli) check(cmd *cobra.Command, asJSON bool) error {
	var faults []tank.Fault
	err := c.with(cmd.Context(), reads, func(svc tank.Service) error {
		faults = nil
		return svc.Check(cmd.Context(), func(f tank.Fault) { faults = append(faults, f) })
	})
	if err != nil {
		return err
	}
	if asJSON {
		if err := printable.EncodeJSON(cmd.OutOrStdout(), append([]tank.Fault{}, faults...), ""); err != nil {
			return err
		}
	} else {
		for _, f := range faults {
			printable.Fprintf(cmd.OutOrStdout(), "%s\n", f.Message)
		}
	}
	if len(faults) > 0 {
		return cause.Mark(fmt.Errorf("check: faults found: %d: %w", len(faults), errdefs.ErrDataLoss), cause.Faults, "")
	}
	return nil
}

// rebuild makes the database of the root again. It fails if another process owns the root.
func (c *cli) rebuild(ctx context.Context) error {
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
	r, err := tank.Rebuild(ctx, root)
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
		printable.Fprintf(w, "index.json could not be read: images that only it named are missing. Their blobs "+
			"are kept, so that a new pull of them downloads little. A copy of the file is below lost/.\n")
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
