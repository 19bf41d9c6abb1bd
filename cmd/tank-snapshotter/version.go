package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// version is set by the linker (see the Makefile). If it is empty, the command prints the version of the
// build information.
var version string

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			v := version
			if info, ok := debug.ReadBuildInfo(); ok && v == "" {
				v = info.Main.Version
			}
			printable.Fprintf(cmd.OutOrStdout(), "tank-snapshotter %s %s %s/%s\n",
				first(v, "unknown"), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		}),
	}
}
