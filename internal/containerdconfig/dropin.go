package containerdconfig

import (
	"fmt"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/processor"
)

// Install is how a containerd and a daemon work together.
type Install struct {
	Root, Address     string // the daemon's, absolute
	ContainerdAddress string
	Content           bool // Tank is containerd's content store
	Directory         bool // snapshots are copies, not overlay mounts
	UserNS            bool // both run inside a user namespace
	SkipKnownBlobs    bool // containerd does not fetch the blobs of known layers
	// Processors are the stream processors of Tank's own config. nil: Tank takes containerd's.
	Processors map[string]processor.Processor
}

// The capabilities of a snapshotter that containerd knows.
const (
	capRebase   = "rebase"    // layers are unpacked in parallel, without their parents
	capRemapIDs = "remap-ids" // owners are remapped by the mount, so containerd need not change those of every file
)

// capabilities are what containerd may count on. "rebase" needs whiteouts that Tank takes over from overlay's upper directories, which
// containerd can't make inside a user namespace and which copies have no place for. Remapped ids need a mount that can do it: not bind
// mounts of copies, and not from inside a user namespace, where nobody may remap a file system of the outside.
func (in Install) capabilities() []string {
	if in.Directory || in.UserNS {
		return []string{}
	}
	return []string{capRebase, capRemapIDs}
}

// DropIn returns the TOML file that containerd has to import to use Tank.
func (in Install) DropIn() (string, error) {
	root, err := quote(in.Root)
	if err != nil {
		return "", fmt.Errorf("--root: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	address, err := quote(in.Address)
	if err != nil {
		return "", fmt.Errorf("--address: %w: %w", err, errdefs.ErrInvalidArgument)
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
		return "", fmt.Errorf("stream_processors: %w: %w", err, errdefs.ErrInvalidArgument)
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
