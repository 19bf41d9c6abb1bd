package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/moby/sys/userns"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/internal/containerdconfig"
	"github.com/tank-snapshotter/tank/internal/printable"
)

func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Print and check configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print this program's config file with every key and its default",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), defaultConfig)
			return err
		}),
	}, c.containerdCommand(), c.configCheckCommand())
	return cmd
}

func (c *cli) containerdCommand() *cobra.Command {
	var withoutContent bool
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Print the file that containerd's config has to import to use this daemon",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			in, err := c.install(cmd.Context())
			if err != nil {
				return err
			}
			if withoutContent && in.ContainerdAddress == "" {
				log.G(cmd.Context()).Warn("--without-content needs the key containerd_address in Tank's own config")
			}
			if withoutContent {
				in.Content = false
			}
			text, err := in.DropIn()
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		}),
	}
	cmd.Flags().BoolVar(&withoutContent, "without-content", false,
		"leave containerd its own content store, as containerd_address in the config does")
	return cmd
}

// install returns the install that the daemon's config and the flags describe.
func (c *cli) install(ctx context.Context) (in containerdconfig.Install, err error) {
	s, err := c.settingsFor(ctx, true)
	if err != nil {
		return in, err
	}
	in = containerdconfig.Install{
		ContainerdAddress: s.ContainerdAddress, Content: s.ContainerdAddress == "",
		Directory: s.Mode == modeDirectory, UserNS: userns.RunningInUserNS(), SkipKnownBlobs: s.SkipKnownBlobs,
		Processors: s.StreamProcessors,
	}
	if in.Root, err = filepath.Abs(first(c.root, s.Root, defaultRoot)); err != nil {
		return in, err
	}
	in.Address, err = filepath.Abs(first(c.address, s.Address, defaultAddress))
	return in, err
}

func (c *cli) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Report what is missing, wrong or dangerous in a containerd config",
		Long: "Report what is missing, wrong or dangerous for Tank in a containerd config and the files that " +
			"it imports. Each line is one finding.\n\n" +
			"The root, the address and the mode are those of the flags and of Tank's own config. Neither " +
			"daemon has to run.\n" +
			"The exit code is 1 if something has to be changed. A line that begins with \"Note:\" asks for no " +
			"change.",
		Args: cobra.ExactArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			in, err := c.install(cmd.Context())
			if err != nil {
				return err
			}
			found, err := in.Check(cmd.Context(), args[0])
			if err != nil {
				return usageError{fmt.Errorf("config %s: %w", args[0], err)}
			}
			wrong := 0
			for _, f := range found {
				if !f.Note {
					wrong++
				}
				printable.Fprintf(cmd.OutOrStdout(), "%s\n", f.String())
			}
			if wrong > 0 {
				return localError{fmt.Errorf("config %s: %d things to be changed; `tank-snapshotter config "+
					"containerd` prints the file that it has to import", args[0], wrong)}
			}
			printable.Fprintf(cmd.ErrOrStderr(), "%s fits a daemon with the root %s at %s\n", args[0], in.Root,
				in.Address)
			return nil
		}),
	}
}
