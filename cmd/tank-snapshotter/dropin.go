package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/moby/sys/userns"
	"github.com/spf13/cobra"
)

func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print configuration", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print this program's config file with every key and its default",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), defaultConfig)
			return err
		}),
	})
	var withoutContent bool
	containerd := &cobra.Command{
		Use:   "containerd",
		Short: "Print what containerd's config has to import to work with this daemon",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			s, err := c.settingsFor(true)
			if err != nil {
				return err
			}
			text, err := dropIn(first(c.root, s.Root, defaultRoot), first(c.address, s.Address, defaultAddress), !withoutContent, userns.RunningInUserNS())
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		}),
	}
	containerd.Flags().BoolVar(&withoutContent, "without-content", false, "leave containerd its own content store")
	cmd.AddCommand(containerd)
	return cmd
}

// dropIn is the TOML of DESIGN section 8. Inside a user namespace "rebase" is left out, because there containerd can't unpack in
// parallel, and "remap-ids", because nobody can mount a file system of the outside with remapped ids from there.
func dropIn(root, address string, content, userNS bool) (string, error) {
	var err error
	if root, err = quotePath(root); err != nil {
		return "", usageError{fmt.Errorf("--root: %w", err)}
	}
	if address, err = quotePath(address); err != nil {
		return "", usageError{fmt.Errorf("--address: %w", err)}
	}
	capabilities := `["rebase", "remap-ids"]`
	if userNS {
		capabilities = `[]`
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`version = 3`)
	if content {
		line(`disabled_plugins = ["io.containerd.content.v1.content"]      # exactly one content store may exist`)
	}
	line(``)
	line(`[proxy_plugins.tank]`)
	line(`  type = "snapshot"`)
	line(`  address = %s`, address)
	line(`  capabilities = %s`, capabilities)
	line(`  [proxy_plugins.tank.exports]`)
	line(`    root = %s`, root)
	line(`    enable_remote_snapshot_annotations = "true"`)
	if content {
		line(`[proxy_plugins.tank-content]`)
		line(`  type = "content"`)
		line(`  address = %s`, address)
	}
	line(`[proxy_plugins.tank-diff]`)
	line(`  type = "diff"`)
	line(`  address = %s`, address)
	line(``)
	b.WriteString(dropInTail)
	return b.String(), nil
}

const dropInTail = `[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = 4
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "tank"
    differ = "tank-diff"
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]] # defining the table drops containerd's own entries
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "tank"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["tank-diff", "walking"]
`

// quotePath makes a path absolute and writes it as a basic string of TOML.
func quotePath(name string) (string, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("%q is not UTF-8, which TOML is", name)
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range name {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}
