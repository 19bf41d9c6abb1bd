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
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/resolver/auth"
)

func (c *cli) pullCommand() *cobra.Command {
	var (
		req      plugin.PullRequest
		asJSON   bool
		kind     string
		to       string
		hostsDir string
	)
	cmd := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Bring an image here and print the path of its root filesystem",
		Long: "Bring an image here and print the path of its root filesystem.\n\n" +
			"The directory stays until `rm REF` and `gc`, whoever calls them. If a later pull finds that the tag has moved, " +
			"the next gc deletes the directory. Pull NAME@DIGEST to keep it when the tag moves, or use --to for a copy of " +
			"your own.",
		Args: cobra.ExactArgs(1),
		RunE: c.do(func(cmd *cobra.Command, args []string) error {
			req.Ref = args[0]
			switch {
			case req.Offline && req.Refresh:
				return usageError{errors.New("--offline and --refresh exclude each other")}
			case to != "" && req.NoRootfs:
				return usageError{errors.New("--to and --no-rootfs exclude each other")}
			}
			if err := writable(to); err != nil {
				return err
			}
			display, err := progress.New(os.Stderr, kind)
			if err != nil {
				return usageError{err}
			}
			return c.pull(cmd, req, hostsDir, display, to, asJSON)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&req.Offline, "offline", false, "answer from what is here, without the network")
	f.BoolVar(&req.Refresh, "refresh", false, "trust nothing that is here")
	f.StringVar(&req.Platform, "platform", "", "OS/ARCH[/VARIANT] (default this machine's)")
	f.StringVar(&to, "to", "", "write a root filesystem of one's own to this directory")
	f.BoolVar(&req.NoRootfs, "no-rootfs", false, "fetch and unpack only, and print the manifest's digest")
	f.BoolVar(&req.Plain, "plain-http", false, "speak HTTP with the registry")
	f.StringVar(&hostsDir, "hosts-dir", "", "directory of hosts.toml files (default "+defaultHosts+")")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	f.BoolVar(&req.NoSync, "no-sync", false, "do not wait until everything is on the disk")
	f.StringVar(&kind, "progress", "auto", "auto, plain or none")
	return cmd
}

func (c *cli) pull(cmd *cobra.Command, req plugin.PullRequest, hostsDir string, display progress.Display,
	to string, asJSON bool,
) error {
	report := func(p plugin.Progress) {
		if p.Line == "" && !p.Cached {
			c.ending.leaves("What was downloaded is kept for a day: the same pull goes on from there.")
		}
		switch {
		case p.Line != "" && display.Text != nil:
			display.Text(p.Line)
		case p.Line != "":
			if warning, ok := strings.CutPrefix(p.Line, tank.WarningPrefix); ok {
				log.G(cmd.Context()).Warn(warning)
				return
			}
			log.G(cmd.Context()).Info(p.Line)
		case display.Event != nil:
			display.Event(progress.Event{
				Digest: p.Digest, Offset: p.Offset, Total: p.Total, Done: p.Done, Cached: p.Cached,
			})
		}
	}
	s, err := c.settingsFor(cmd.Context(), false)
	if err != nil {
		return err
	}
	docker := auth.DockerConfig("")
	credentials := func(ctx context.Context, host string) (plugin.Credential, error) {
		cred, err := docker(ctx, host)
		return plugin.Credential(cred), err
	}
	client := plugin.PullClient{
		Report: report, Credentials: credentials, HostsDir: first(hostsDir, s.HostsDir, defaultHosts),
	}
	use := fills
	if req.Offline {
		use = reads
	}
	return c.with(cmd.Context(), use, func(svc plugin.Admin) error {
		req, client := req, client // another attempt may have another owner
		if _, own := svc.(*local); !own {
			// The owner of the root opens no path that this command names, so it is sent the files that it needs.
			if err := entrust(cmd.Context(), &req, &client, hostsDir != ""); err != nil {
				return err
			}
		}
		image, err := svc.Pull(cmd.Context(), req, client)
		if err != nil {
			return err
		}
		if to != "" {
			if image.Rootfs, err = c.cloneTo(cmd.Context(), image.Rootfs, to); err != nil {
				return err
			}
		}
		return printImage(cmd.OutOrStdout(), image, asJSON) // before what others asked of this process keeps it
	})
}

// writable refuses early a directory for --to that holds something.
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

// cloneTo writes a rootfs of the caller's own. This process does it, with the rights of who asked for it.
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

// printImage writes what scripts read: the rootfs, without one the manifest's digest, or all of it as JSON.
func printImage(w io.Writer, image *plugin.PulledImage, asJSON bool) error {
	if asJSON {
		return printable.EncodeJSON(w, image, "")
	}
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		w = os.Stdout // unescaped: a script needs the exact bytes of the path
	}
	_, err := io.WriteString(w, first(image.Rootfs, image.Manifest)+"\n")
	return err
}
