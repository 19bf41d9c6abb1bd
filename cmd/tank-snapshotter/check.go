package main

import (
	"fmt"

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
				if err := c.rebuildCommand(cmd.Context()); err != nil {
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
