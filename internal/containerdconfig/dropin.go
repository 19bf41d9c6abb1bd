package containerdconfig

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/processor"
)

// DropIn returns the TOML file that containerd has to import to use Tank. errdefs.ErrInvalidArgument if a path is not
// UTF-8.
func (in Install) DropIn() (string, error) {
	root, err := quote(in.Root)
	if err != nil {
		return "", fmt.Errorf("root: %w", err)
	}
	address, err := quote(in.Address)
	if err != nil {
		return "", fmt.Errorf("address: %w", err)
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
		return "", fmt.Errorf("stream_processors: %w", err)
	}
	b.WriteString(sections)
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// dropInTail is the part of the drop-in that depends only on the architecture. containerd before 2.3 has no
// erofs, and fails if its config names it; so that entry is a comment.
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

// quote returns a path as a basic string of TOML.
func quote(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("%q is not UTF-8, which TOML needs: %w", name, errdefs.ErrInvalidArgument)
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

// processorSections returns processors as TOML.
func processorSections(all map[string]processor.Processor) (string, error) {
	var b strings.Builder
	var errs []error
	quoted := func(s string) string {
		q, err := quote(s)
		errs = append(errs, err)
		return q
	}
	list := func(all []string) string {
		quotes := make([]string, len(all))
		for i, s := range all {
			quotes[i] = quoted(s)
		}
		return "[" + strings.Join(quotes, ", ") + "]"
	}
	for _, p := range Sorted(all) {
		b.Write(fmt.Appendf(nil, "[stream_processors.%s]\n  accepts = %s\n  returns = %s\n  path = %s\n",
			quoted(p.ID), list(p.Accepts), quoted(p.Returns), quoted(p.Path)))
		b.Write(fmt.Appendf(nil, "  args = %s\n  env = %s\n", list(p.Args), list(p.Env)))
	}
	return b.String(), errors.Join(errs...)
}
