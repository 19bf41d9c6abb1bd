package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/progress"
	"github.com/tank-snapshotter/tank/plugin/admin"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

func (c *cli) pullCommand() *cobra.Command {
	var (
		opts     tank.PullOptions
		asJSON   bool
		kind     string
		to       string
		hostsDir string
	)
	cmd := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Pull an image and print the path of its root filesystem",
		Long: "Pull an image and print the path of its root filesystem.\n\n" +
			"The directory stays until any user calls `rm REF` and `gc`. If a later pull finds that the tag " +
			"has moved, the next gc deletes the directory. Pull NAME@DIGEST to keep it when the tag moves, or " +
			"use --to for a copy of your own.",
		Args: cobra.ExactArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			switch {
			case opts.Offline && opts.Refresh:
				return usageError{errors.New("--offline and --refresh exclude each other")}
			case to != "" && opts.NoRootfs:
				return usageError{errors.New("--to and --no-rootfs exclude each other")}
			}
			if err := writable(to); err != nil {
				return err
			}
			display, err := progress.New(os.Stderr, kind)
			if err != nil {
				return usageError{err}
			}
			opts.Log, opts.Progress = c.report(cmd.Context(), display)
			return c.pull(cmd, args[0], opts, hostsDir, to, asJSON)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&opts.Offline, "offline", false, "use only images that were pulled before, without the network")
	f.BoolVar(&opts.Refresh, "refresh", false, "download everything again, even what is here")
	f.StringVar(&opts.Platform, "platform", "", "OS/ARCH[/VARIANT] (default this machine's)")
	f.StringVar(&to, "to", "", "write a copy of the root filesystem to this directory, and print its path")
	f.BoolVar(&opts.NoRootfs, "no-rootfs", false, "only download and unpack, and print the manifest's digest")
	f.BoolVar(&opts.PlainHTTP, "plain-http", false, "use HTTP instead of HTTPS for the registry")
	f.StringVar(&hostsDir, "hosts-dir", "", "directory of hosts.toml files (default "+defaultHosts+")")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	f.BoolVar(&opts.NoSync, "no-sync", false, "do not wait until everything is written to the disk")
	f.StringVar(&kind, "progress", "auto", "auto, plain or none")
	return cmd
}

// report returns two functions that show a line and the state of a download. Lines go to the log if the
// display does not show them.
func (c *cli) report(ctx context.Context, display progress.Display) (line func(string), event func(tank.Event)) {
	line = func(text string) {
		if display.Text != nil {
			display.Text(text)
		} else if warning, ok := strings.CutPrefix(text, tank.WarningPrefix); ok {
			log.G(ctx).Warn(warning)
		} else {
			log.G(ctx).Info(text)
		}
	}
	event = func(e tank.Event) {
		if !e.Cached {
			c.ending.leaves("What was downloaded is kept for a day: the same pull continues from there.")
		}
		if display.Event != nil {
			display.Event(progress.Event(e))
		}
	}
	return line, event
}

func (c *cli) pull(cmd *cobra.Command, ref string, opts tank.PullOptions, hostsDir, to string, asJSON bool) error {
	s, err := c.settingsFor(cmd.Context(), false)
	if err != nil {
		return err
	}
	opts.Credentials = auth.DockerConfig("")
	opts.HostsDir = first(hostsDir, s.HostsDir, defaultHosts)
	use := fills
	if opts.Offline {
		use = reads
	}
	return c.with(cmd.Context(), use, func(svc tank.Service) error {
		if _, remote := svc.(*admin.Client); remote && hostsDir != "" {
			if _, err := os.Stat(hostsDir); err != nil {
				return usageError{fmt.Errorf("--hosts-dir: %w", err)}
			}
		}
		image, err := svc.Pull(cmd.Context(), ref, &opts)
		if err != nil {
			return err
		}
		if to != "" {
			if image.Rootfs, err = c.cloneTo(cmd.Context(), image.Rootfs, to); err != nil {
				return err
			}
		}
		// Print now, because afterwards this command may wait for the requests of other commands.
		return printImage(cmd.OutOrStdout(), image, asJSON)
	})
}

// writable returns an error if the directory of --to is not empty. So the command fails before it downloads.
func writable(to string) error {
	if to == "" {
		return nil
	}
	names, err := os.ReadDir(to)
	if err == nil && len(names) > 0 {
		return usageError{fmt.Errorf("--to %s: the directory is not empty", to)}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return usageError{fmt.Errorf("--to: %w", err)}
	}
	return nil
}

// cloneTo writes a copy of a rootfs and returns its absolute path. This process and not the owner of the root
// writes it, so the user needs the rights for it.
func (c *cli) cloneTo(ctx context.Context, rootfs, to string) (string, error) {
	to, err := filepath.Abs(to)
	if err != nil {
		return "", err
	}
	c.ending.leaves("The copy in " + printable.Text(to) + " is not complete: delete it.")
	if err := tank.Clone(ctx, rootfs, to); err != nil {
		return "", localError{err}
	}
	return to, nil
}

// printImage prints the path of the rootfs, or the manifest's digest if there is none, or everything as JSON.
func printImage(w io.Writer, image *tank.Image, asJSON bool) error {
	if asJSON {
		return printable.EncodeJSON(w, image, "")
	}
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		w = os.Stdout // unescaped: a script needs the exact bytes of the path
	}
	_, err := io.WriteString(w, first(image.Rootfs, image.Manifest.String())+"\n")
	return err
}
