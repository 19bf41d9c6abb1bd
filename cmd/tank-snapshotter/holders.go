package main

import (
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/printable"
)

func (c *cli) holdersCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "holders",
		Short: "List the holders, which keep things: containerds, images, unfinished pulls",
		Long: "List the holders, which keep things: containerds, images, unfinished pulls.\n\n" +
			"BYTES is the disk space that a holder keeps, as du measures it. ALONE is the part that no other " +
			"holder keeps: a release of the holder frees it.\n\n" +
			"Each containerd has its own holder, which Tank finds by containerd's database. CONNECTED is the " +
			"time of the last connection, DATABASE the path of the database at that time.",
		Args: cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			var holders []tank.HolderInfo
			err := c.with(cmd.Context(), reads, func(svc tank.Service) (err error) {
				holders, err = svc.Holders(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printable.EncodeJSON(cmd.OutOrStdout(), append([]tank.HolderInfo{}, holders...), "")
			}
			if len(holders) == 0 {
				return nil
			}
			return printHolders(cmd.OutOrStdout(), holders)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON array, with sizes in bytes")
	return cmd
}

func printHolders(to io.Writer, holders []tank.HolderInfo) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	printable.Fprintf(w, "HOLDER\tBLOBS\tINGESTS\tLAYERS\tROOTFS\tSNAPSHOTS\tBYTES\tALONE\tCONNECTED\tDATABASE\n")
	for _, h := range holders {
		connected, database := "-", "-"
		switch {
		case h.Connected:
			connected = "now"
		case !h.Seen.IsZero():
			connected = h.Seen.Local().Format(time.DateTime)
		}
		if h.Database != "" {
			database = h.Database
		}
		printable.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", h.Holder, h.Blobs, h.Ingests, h.Layers,
			h.Rootfs, h.Snapshots, printable.Bytes(h.Bytes), printable.Bytes(h.Exclusive), connected, database)
	}
	return w.Flush()
}

func (c *cli) releaseCommand() *cobra.Command {
	var force bool
	var to string
	cmd := &cobra.Command{
		Use:   "release HOLDER",
		Short: "Give up everything that a holder in the list of `holders` keeps",
		Long: "Give up everything that a holder in the list of `holders` keeps, and delete what no other " +
			"holder keeps.\n\n" +
			"Release \"containerd\" or \"containerd/ID\" if that containerd will not come back or its root was " +
			"wiped. The command refuses this while that containerd is connected or one of its snapshots is " +
			"mounted.\n" +
			"\"image/REF\" removes an image as rm does, and frees the space as well. \"pull/REF\" forgets what " +
			"an unfinished pull has downloaded.\n\n" +
			"With --to nothing is given up: another containerd gets everything that HOLDER keeps. Use it for a " +
			"containerd whose root was moved or restored, and which Tank did not recognize by itself.",
		Args: cobra.ExactArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			var h tank.HolderInfo
			err := c.with(cmd.Context(), changes, func(svc tank.Service) (err error) {
				h, err = svc.Release(cmd.Context(), args[0], &tank.ReleaseOptions{Force: force, To: to})
				return err
			})
			if err != nil {
				return err
			}
			if to != "" {
				printable.Fprintf(cmd.OutOrStdout(),
					"%s has what %s kept: %d blobs, %d ingests, %d layers, %d rootfs, %d snapshots\n",
					to, h.Holder, h.Blobs, h.Ingests, h.Layers, h.Rootfs, h.Snapshots)
				return nil
			}
			printable.Fprintf(cmd.OutOrStdout(),
				"released %s, reclaimed %s: %d blobs, %d ingests, %d layers, %d rootfs, %d snapshots\n",
				h.Holder, printable.Bytes(h.Freed), h.Blobs, h.Ingests, h.Layers, h.Rootfs, h.Snapshots)
			return nil
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "holder of the containerd that gets what HOLDER keeps (default: give it up)")
	cmd.Flags().BoolVar(&force, "force", false,
		"release a containerd even if it is connected or its snapshots are mounted: its containers break")
	cmd.MarkFlagsMutuallyExclusive("to", "force")
	return cmd
}
