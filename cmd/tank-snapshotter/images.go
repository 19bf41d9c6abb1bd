package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/printable"
)

func (c *cli) imagesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the pulled images",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			var images []tank.ImageInfo
			err := c.with(cmd.Context(), reads, func(svc tank.Service) (err error) {
				images, err = svc.Images(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printable.EncodeJSON(cmd.OutOrStdout(), append([]tank.ImageInfo{}, images...), "")
			}
			if len(images) == 0 {
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			printable.Fprintf(w, "REF\tDIGEST\tPLATFORM\tSIZE\tPULLED\n")
			for _, i := range images {
				printable.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n",
					i.Ref, printable.Digest(i.Digest.String()), i.Platform, printable.Bytes(i.Size),
					i.Created.UTC().Format(time.RFC3339))
			}
			return w.Flush()
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array")
	return cmd
}

func (c *cli) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect REF",
		Short: "Print the records of an image as one JSON object",
		Args:  cobra.ExactArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			var record *tank.ImageDetails
			err := c.with(cmd.Context(), reads, func(svc tank.Service) (err error) {
				record, err = svc.Inspect(cmd.Context(), args[0])
				return err
			})
			if err != nil {
				return err
			}
			return printable.EncodeJSON(cmd.OutOrStdout(), record, "  ")
		}),
	}
}

func (c *cli) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm REF...",
		Short: "Forget images; gc then frees the space of what no other holder keeps",
		Long: "Forget images; gc then frees the space of what no other holder keeps.\n\n" +
			"A REF with a digest removes an image that was pulled by that digest, and never a tag. If the " +
			"image is here only under tags, the error names them.",
		Args: cobra.MinimumNArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			removed := make([]bool, len(args))
			return c.with(cmd.Context(), changes, func(svc tank.Service) error {
				var errs []error
				for i, ref := range args {
					if removed[i] {
						continue
					}
					err := svc.Remove(cmd.Context(), ref)
					removed[i] = err == nil
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		}),
	}
}

func (c *cli) gcCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Delete everything that has no holder, and images whose tag has moved",
		Long: "Delete everything that has no holder, and images whose tag has moved: a later pull found " +
			"another image under the same name. Their root filesystems are deleted even while they are in use. " +
			"Images that were pulled by digest stay.\n\n" +
			"Blobs that an entry of another program in the root's index.json needs stay, too.\n\n" +
			"The printed size is the space that was freed on the disk, as du measures it. Where files share " +
			"blocks (reflinks), less is freed.\n\n" +
			"Downloads of an unfinished pull are kept for a day, so that the pull can go on. gc lists them on " +
			"stderr, and frees them only if the disk is almost full. `release pull/REF` frees them at once.\n\n" +
			"Files that a user made immutable or append-only (chattr) stay. gc lists them on stderr and still " +
			"ends with 0.",
		Args: cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			var r tank.Reclaimed
			err := c.with(cmd.Context(), changes, func(svc tank.Service) (err error) {
				r, err = svc.GC(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			if r.Kept != "" {
				printable.Fprintf(cmd.ErrOrStderr(), "tank-snapshotter: %s\n", r.Kept)
			}
			printable.Fprintf(cmd.OutOrStdout(),
				"reclaimed %s: %d images, %d blobs, %d ingests, %d layers, %d rootfs, %d snapshots\n",
				printable.Bytes(r.Bytes), r.Images, r.Blobs, r.Ingests, r.Layers, r.Rootfs, r.Snapshots)
			for _, u := range r.Unfinished {
				printable.Fprintf(cmd.ErrOrStderr(), "%s\n", unfinishedLine(u))
			}
			return nil
		}),
	}
}

// unfinishedLine returns a line about an unfinished pull: how much it keeps, and how to free that.
func unfinishedLine(u tank.Unfinished) string {
	_, pull := strings.CutPrefix(u.Holder, "pull/")
	switch size := printable.Bytes(u.Bytes); {
	case u.Running:
		return fmt.Sprintf("%s, a running pull, has downloaded %s so far", u.Holder, size)
	case pull:
		return fmt.Sprintf("%s, an unfinished pull, keeps %s for a day: `release %s` frees it",
			u.Holder, size, u.Holder)
	default:
		return fmt.Sprintf("%s keeps %s of unfinished downloads, which its containerd resumes or deletes",
			u.Holder, size)
	}
}
