// Package containerdconfig reads and checks the configuration of a containerd, and writes the file that it
// has to import to use Tank.
//
// It owns nothing on disk and writes no file: callers get text and values.
//
// Its invariant: a config is read as containerd reads it. Each file is migrated to the newest version by
// itself, and then the files are merged. So a finding about a key is about the value that containerd uses.
//
// The surprising rule: a config that containerd refuses is a finding and no error. Check returns an error
// only if the first file does not exist or the context ends. ProcessorsOf is stricter: Tank runs the
// configured programs with its own rights, so it accepts only files that no other user can write, and any
// problem is an error.
package containerdconfig

import (
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/internal/processor"
)

// The values that containerd uses for keys that are not in its config.
const (
	DefaultAddress     = "/run/containerd/containerd.sock"
	defaultRoot        = "/var/lib/containerd"
	defaultSnapshotter = "overlayfs"
	// defaultImports is in the output of `containerd config default`. The pattern may match no file.
	defaultImports = "/etc/containerd/conf.d/*.toml"
)

// newestVersion is the newest version of a config that containerd 2.4 reads.
const newestVersion = 4

// maxFile bounds the size of one file, in bytes.
const maxFile = 4 << 20

// The names of containerd's plugins whose sections are read.
const (
	pluginTransfer = "io.containerd.transfer.v1.local"
	pluginDiff     = "io.containerd.service.v1.diff-service"
	pluginImages   = "io.containerd.cri.v1.images"
	pluginRuntime  = "io.containerd.cri.v1.runtime"
	pluginCRI      = "io.containerd.grpc.v1.cri" // the server of CRI; up to version 2 of the config, all of CRI
	pluginGRPC     = "io.containerd.server.v1.grpc"
	pluginMetadata = "io.containerd.metadata.v1.bolt"
	pluginContent  = "io.containerd.content.v1.content"
)

// Config is the part of containerd's config that concerns Tank.
type Config struct {
	Version         int                    `toml:"version"`
	Root            string                 `toml:"root"`
	Imports         []string               `toml:"imports"`
	DisabledPlugins []string               `toml:"disabled_plugins"`
	ProxyPlugins    map[string]ProxyPlugin `toml:"proxy_plugins"`
	// Plugins has the section of each plugin, by the plugin's name.
	Plugins map[string]any `toml:"plugins"`
	// StreamProcessors has the stream processors, by their IDs.
	StreamProcessors map[string]processor.Processor `toml:"stream_processors"`
	// GRPC is where the address was until version 3.
	GRPC struct {
		Address string `toml:"address"`
	} `toml:"grpc"`

	files []string // names of the files that were read
}

// ProxyPlugin is a plugin of containerd that another process serves on a socket.
type ProxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Exports      map[string]string `toml:"exports"`
	Capabilities []string          `toml:"capabilities"`
}

// section returns the place of a plugin in a config, for findings.
func section(plugin string) string { return "[plugins.'" + plugin + "']" }

// decode reads the section of a plugin into v, which has containerd's defaults. It reports whether containerd
// can read the section, too; if not, it adds a finding.
func (c *Config) decode(plugin string, v any, found *findings) bool {
	data, ok := c.Plugins[plugin]
	if !ok {
		return true
	}
	text, err := toml.Marshal(data)
	if err == nil {
		err = toml.Unmarshal(text, v)
	}
	if err != nil {
		found.wrong(section(plugin), "is not as containerd expects it, which does not start: %s",
			strings.TrimPrefix(err.Error(), "toml: "))
	}
	return err == nil
}
