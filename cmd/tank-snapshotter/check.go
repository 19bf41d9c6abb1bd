package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/progress"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

func (c *cli) checkCommand() *cobra.Command {
	var asJSON, rebuild, repair bool
	var opts tank.RepairOptions
	var hostsDir, kind string
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
			switch {
			case repair:
				display, err := progress.New(os.Stderr, kind)
				if err != nil {
					return usageError{err}
				}
				opts.Log, opts.Progress = c.report(cmd.Context(), display)
				return c.repair(cmd, &opts, hostsDir, asJSON)
			case opts.Offline || opts.PlainHTTP || hostsDir != "":
				return usageError{errors.New("--offline, --plain-http and --hosts-dir are for --repair")}
			}
			return c.check(cmd, asJSON)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&repair, "repair", false, "mend what can be mended, also while a daemon serves and containers run; "+
		"print what remains")
	f.BoolVar(&opts.Offline, "offline", false, "with --repair: use only what is here, without the network")
	f.BoolVar(&opts.PlainHTTP, "plain-http", false, "with --repair: use HTTP instead of HTTPS for registries")
	f.StringVar(&hostsDir, "hosts-dir", "", "with --repair: directory of hosts.toml files (default "+defaultHosts+")")
	f.StringVar(&kind, "progress", "auto", "with --repair: auto, plain or none")
	f.BoolVar(&asJSON, "json", false, "print one JSON array; with --repair one object")
	f.BoolVar(&rebuild, "rebuild", false, "first make the database again, from its readable parts "+
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
		printFaults(cmd.OutOrStdout(), faults)
	}
	if len(faults) > 0 {
		return cause.Mark(fmt.Errorf("check: faults found: %d: %w", len(faults), errdefs.ErrDataLoss), cause.Faults, "")
	}
	return nil
}

// printFaults prints each fault, and after the last one of each thing what would mend it.
func printFaults(w io.Writer, faults []tank.Fault) {
	for i, f := range faults {
		printable.Fprintf(w, "%s\n", f.Message)
		if i+1 < len(faults) && faults[i+1].What == f.What && faults[i+1].Name == f.Name {
			continue
		}
		if f.Reason != "" {
			printable.Fprintf(w, "  not mended: %s\n", f.Reason)
		}
		if f.Advice != "" {
			printable.Fprintf(w, "  what mends it: %s\n", f.Advice)
		}
	}
}

// repair mends what can be mended, and prints what remains.
func (c *cli) repair(cmd *cobra.Command, opts *tank.RepairOptions, hostsDir string, asJSON bool) error {
	s, err := c.settingsFor(cmd.Context(), false)
	if err != nil {
		return err
	}
	opts.Credentials = auth.DockerConfig("")
	opts.HostsDir = first(hostsDir, s.HostsDir, defaultHosts)
	var res *tank.RepairResult
	err = c.with(cmd.Context(), changes, func(svc tank.Service) (err error) {
		res, err = svc.Repair(cmd.Context(), opts)
		return err
	})
	if err != nil {
		return err
	}
	if asJSON {
		if err := printable.EncodeJSON(cmd.OutOrStdout(), res, ""); err != nil {
			return err
		}
	} else {
		for _, f := range res.Mended {
			printable.Fprintf(cmd.OutOrStdout(), "mended: %s %s\n", f.What, f.Name)
		}
		printFaults(cmd.OutOrStdout(), res.Remains)
	}
	if n := len(res.Remains); n > 0 {
		return cause.Mark(fmt.Errorf("check: faults remain: %d: %w", n, errdefs.ErrDataLoss), cause.Faults, "")
	}
	return nil
}
