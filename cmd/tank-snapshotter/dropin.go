package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/containerd/log"
	"github.com/moby/sys/userns"
	"github.com/spf13/cobra"

	"github.com/tank-snapshotter/tank/internal/processor"
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
		Short: "Print what containerd's config has to import to work with this daemon",
		Args:  cobra.NoArgs,
		RunE: c.do(func(cmd *cobra.Command, _ []string) error {
			in, err := c.install(cmd.Context())
			if err != nil {
				return err
			}
			if withoutContent && in.ContainerdAddress == "" {
				log.G(cmd.Context()).Warn("without the content store Tank needs the key containerd_address in its own config")
			}
			if withoutContent {
				in.Content = false
			}
			text, err := in.dropIn()
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		}),
	}
	cmd.Flags().BoolVar(&withoutContent, "without-content", false, "leave containerd its own content store, as containerd_address in the config does")
	return cmd
}

// install is how a containerd and a daemon work together.
type install struct {
	Root, Address     string // the daemon's, absolute
	ContainerdAddress string
	Content           bool // Tank is containerd's content store
	Directory         bool // snapshots are copies, not overlay mounts
	UserNS            bool // both run inside a user namespace
	SkipKnownBlobs    bool // containerd does not fetch the blobs of known layers
	// Processors are the stream processors of Tank's own config. nil: Tank takes containerd's.
	Processors map[string]processor.Processor
}

// install is what the daemon's config and the flags ask for.
func (c *cli) install(ctx context.Context) (in install, err error) {
	s, err := c.settingsFor(ctx, true)
	if err != nil {
		return in, err
	}
	in = install{
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

// The capabilities of a snapshotter that containerd knows.
const (
	capRebase   = "rebase"    // layers are unpacked in parallel, without their parents
	capRemapIDs = "remap-ids" // owners are remapped by the mount, so containerd need not change those of every file
)

// capabilities are what containerd may count on. "rebase" needs whiteouts that Tank takes over from overlay's upper directories, which
// containerd can't make inside a user namespace and which copies have no place for. Remapped ids need a mount that can do it: not bind
// mounts of copies, and not from inside a user namespace, where nobody may remap a file system of the outside.
func (in install) capabilities() []string {
	if in.Directory || in.UserNS {
		return []string{}
	}
	return []string{capRebase, capRemapIDs}
}

// dropIn is the TOML of DESIGN section 8.
func (in install) dropIn() (string, error) {
	root, err := quote(in.Root)
	if err != nil {
		return "", usageError{fmt.Errorf("--root: %w", err)}
	}
	address, err := quote(in.Address)
	if err != nil {
		return "", usageError{fmt.Errorf("--address: %w", err)}
	}
	var capabilities []string
	for _, c := range in.capabilities() {
		capabilities = append(capabilities, `"`+c+`"`)
	}
	var b strings.Builder
	line := func(format string, args ...any) { b.Write(fmt.Appendf(nil, format+"\n", args...)) }
	line(`version = 3`)
	if in.Content {
		line(`disabled_plugins = ["io.containerd.content.v1.content"]      # exactly one content store may exist`)
	}
	line(``)
	line(`[proxy_plugins.tank]`)
	line(`  type = "snapshot"`)
	line(`  address = %s`, address)
	line(`  capabilities = [%s]`, strings.Join(capabilities, ", "))
	line(`  [proxy_plugins.tank.exports]`)
	line(`    root = %s`, root)
	line(`    enable_remote_snapshot_annotations = "true"`)
	if in.Content {
		line(`[proxy_plugins.tank-content]`)
		line(`  type = "content"`)
		line(`  address = %s`, address)
	}
	line(`[proxy_plugins.tank-diff]`)
	line(`  type = "diff"`)
	line(`  address = %s`, address)
	line(``)
	line(dropInTail, runtime.GOARCH)
	sections, err := processorSections(in.Processors)
	if err != nil {
		return "", usageError{fmt.Errorf("stream_processors: %w", err)}
	}
	b.WriteString(sections)
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// dropInTail is what is the same everywhere but for the architecture. containerd before 2.3 has no erofs and fails at what asks for it.
const dropInTail = `[plugins.'io.containerd.transfer.v1.local']
  # max_concurrent_downloads would go here: in the section of CRI it turns parallel unpacking off.
  max_concurrent_unpacks = 4
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "tank"
    differ = "tank-diff"
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]] # defining the table drops containerd's own entries
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
    optional = true
  # Of containerd's own entries, 2.3 and later also have this one, for images in the form of EROFS:
  # [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  #   platform = "linux(+erofs)/%s"
  #   snapshotter = "erofs"
  #   differ = "erofs"
  #   optional = true
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "tank"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["tank-diff", "walking"]
`

// quote writes a path as a basic string of TOML.
func quote(name string) (string, error) {
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
			b.Write(fmt.Appendf(nil, `\u%04X`, r))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}
