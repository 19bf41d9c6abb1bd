package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/internal/userfile"
)

// Where things are unless somebody says otherwise.
const (
	systemConfig   = "/etc/tank-snapshotter/config.toml"
	defaultRoot    = "/var/lib/tank-snapshotter"
	defaultAddress = "/run/tank-snapshotter/tank-snapshotter.sock"
	defaultHosts   = "/etc/containerd/certs.d"
)

// maxConfig bounds the config, in bytes.
const maxConfig = 1 << 20

// settings are the keys of the config file. An empty one means the default.
type settings struct {
	Root              string `toml:"root"`
	Address           string `toml:"address"`
	Group             string `toml:"group"`
	Mode              string `toml:"mode"`
	ContainerdAddress string `toml:"containerd_address"`
	SkipKnownBlobs    bool   `toml:"skip_known_blobs"`
	LogLevel          string `toml:"log_level"`
	HostsDir          string `toml:"hosts_dir"`
	ImageCache        string `toml:"image_cache"`
	// StreamProcessors takes the place of the section of containerd's config. nil: what containerd has counts.
	StreamProcessors map[string]processor.Processor `toml:"stream_processors,omitempty"`
}

// The values of the key mode.
const (
	modeOverlay   = "overlay"
	modeDirectory = "directory"
)

// defaultConfig is what `config default` prints: every key, with its default.
const defaultConfig = `# Configuration of tank-snapshotter. Every key is here, with its default.
# serve, config containerd and config check read --config or ` + systemConfig + `;
# the other commands read --config, $XDG_CONFIG_HOME/tank/config.toml or ` + systemConfig + `.

# Directory that holds everything of the daemon (serve).
root = "` + defaultRoot + `"

# Socket that the daemon listens on, for containerd and for the commands (serve). The commands look for it at this default;
# with another they need --address, or --root.
address = "` + defaultAddress + `"

# Group whose members may open that socket, by its name in /etc/group or by number. Empty: only the user that serve runs as.
# Who may open the socket can read every image and change what containers run from.
group = ""

# "overlay": snapshots are overlay mounts. "directory": each is a writable copy of its parent, for where nothing may mount
# overlay. Print containerd's config again when it changes: the capabilities differ.
mode = "overlay"

# Socket of the containerd whose content store Tank reads blobs from, for the install that leaves containerd its own content
# store (config containerd --without-content), as "/run/containerd/containerd.sock".
# Empty: Tank is containerd's content store.
containerd_address = ""

# false: containerd downloads every blob of an image, as with its own overlayfs, and Tank does not unpack a layer again
# that it has. true: containerd does not download the blob of such a layer. This suits nodes whose containerd discards
# blobs after unpacking (discard_unpacked_layers). Elsewhere it leaves images incomplete: they can't be pushed, exported
# or run by another snapshotter. A namespace also gets layers that its registry may not have, so do not combine it with
# content_sharing_policy = "isolated".
skip_known_blobs = false

# trace, debug, info, warn, error or fatal.
log_level = "info"

# Directory of <registry>/hosts.toml files: mirrors and certificates, as containerd has them.
hosts_dir = "` + defaultHosts + `"

# Root of the commands other than serve, when neither --root nor $TANK_CACHE names one.
# Empty: for uid 0 the daemon's root if there is one, else $XDG_CACHE_HOME/tank, else ~/.cache/tank.
image_cache = ""

# Programs that decode layers of other media types, such as encrypted ones (serve). Without a section
# [stream_processors] Tank runs the programs that the calling containerd has configured. With such a section, even an
# empty one, it runs only these:
# [stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
#   accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
#   returns = "application/vnd.oci.image.layer.v1.tar+gzip"
#   path = "ctd-decoder"
#   args = ["--decryption-keys-path", "/etc/containerd/ocicrypt/keys"]
#   env = ["OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"]
`

// readSettings reads the first of these files that exists. A key that nobody knows is an error: it is a setting that would be ignored.
func readSettings(ctx context.Context, files ...string) (settings, error) {
	var s settings
	for _, name := range files {
		data, err := userfile.ReadFile(ctx, name, maxConfig)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if ctx.Err() != nil {
			return s, fmt.Errorf("config: %w", err)
		}
		if err != nil {
			return s, usageError{fmt.Errorf("config: %w", err)}
		}
		dec := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil {
			var strict *toml.StrictMissingError
			if errors.As(err, &strict) && len(strict.Errors) > 0 {
				err = fmt.Errorf("unknown key %s", strings.Join(strict.Errors[0].Key(), "."))
			}
			return s, usageError{fmt.Errorf("config %s: %w", name, err)}
		}
		if s.StreamProcessors == nil && hasSection(data, "stream_processors") {
			s.StreamProcessors = map[string]processor.Processor{} // an empty section is decoded as none
		}
		if s.Mode != "" && s.Mode != modeOverlay && s.Mode != modeDirectory {
			return s, usageError{fmt.Errorf("config %s: mode %q: neither %q nor %q", name, s.Mode, modeOverlay, modeDirectory)}
		}
		return s, nil
	}
	return s, nil
}

// hasSection reports whether a TOML file has a key at its top.
func hasSection(data []byte, name string) bool {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return false
	}
	_, ok := all[name]
	return ok
}

// settingsFor reads the config of a command, once, and takes the log level from it when no flag gives one.
func (c *cli) settingsFor(ctx context.Context, serve bool) (settings, error) {
	serve = serve && c.configFile == "" // with --config, serve and the other commands read the same file
	if s, ok := c.read[serve]; ok {
		return s, nil
	}
	files, err := c.configFiles(serve)
	if err != nil {
		return settings{}, err
	}
	s, err := readSettings(ctx, files...)
	if err == nil && c.logLevel == "" && s.LogLevel != "" {
		if e := log.SetLevel(s.LogLevel); e != nil {
			err = usageError{fmt.Errorf("config: log_level %q: %w", s.LogLevel, e)}
		}
	}
	if err != nil {
		return settings{}, err
	}
	if c.read == nil {
		c.read = map[bool]settings{}
	}
	c.read[serve] = s
	return s, nil
}

// configFiles are the places of the config, of which the first that exists counts. serve looks at no user's file: who may write that must not
// decide where the daemon keeps things.
func (c *cli) configFiles(serve bool) ([]string, error) {
	if c.configFile != "" {
		if _, err := os.Stat(c.configFile); err != nil {
			return nil, usageError{fmt.Errorf("--config: %w", err)}
		}
		return []string{c.configFile}, nil
	}
	var files []string
	if dir, err := os.UserConfigDir(); err == nil && !serve {
		files = append(files, filepath.Join(dir, "tank", "config.toml"))
	}
	return append(files, systemConfig), nil
}

// first is the first string that is not empty.
func first(choices ...string) string {
	for _, s := range choices {
		if s != "" {
			return s
		}
	}
	return ""
}
