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

// The default paths.
const (
	systemConfig   = "/etc/tank-snapshotter/config.toml"
	defaultRoot    = "/var/lib/tank-snapshotter"
	defaultAddress = "/run/tank-snapshotter/tank-snapshotter.sock"
	defaultHosts   = "/etc/containerd/certs.d"
)

// maxConfig bounds the size of the config file, in bytes.
const maxConfig = 1 << 20

// settings has the keys of the config file. The zero value of a key means the default.
type settings struct {
	Root              string `toml:"root"`
	Address           string `toml:"address"`
	Group             string `toml:"group"`
	Mode              string `toml:"mode"`
	ContainerdAddress string `toml:"containerd_address"`
	SkipKnownBlobs    bool   `toml:"skip_known_blobs"`
	UnsyncedCommits   bool   `toml:"unsynced_commits"`
	LogLevel          string `toml:"log_level"`
	HostsDir          string `toml:"hosts_dir"`
	ImageCache        string `toml:"image_cache"`
	// StreamProcessors replaces the section of containerd's config. nil: Tank runs the processors of that section.
	StreamProcessors map[string]processor.Processor `toml:"stream_processors,omitempty"`
}

// The values of the key mode.
const (
	modeOverlay   = "overlay"
	modeDirectory = "directory"
)

// defaultConfig is the output of `config default`: every key with its default.
const defaultConfig = `# Configuration of tank-snapshotter. Every key is here, with its default.
# serve, config containerd and config check read --config or ` + systemConfig + `;
# the other commands read --config, $XDG_CONFIG_HOME/tank/config.toml or ` + systemConfig + `.

# Directory in which the daemon keeps everything (serve).
root = "` + defaultRoot + `"

# Socket that the daemon listens on, for containerd and for the commands (serve). The commands find it only at this
# default. With another address they need --address or --root.
address = "` + defaultAddress + `"

# Group whose members may open that socket: a name in /etc/group or a number. Empty: only the user that serve runs as.
# Anyone who can open the socket can read every image and change the files that containers run from.
group = ""

# "overlay": snapshots are overlay mounts. "directory": each snapshot is a writable copy of its parent, for machines on
# which overlay can't be mounted. After a change, print containerd's config again, because the capabilities differ.
mode = "overlay"

# Socket of the containerd from whose content store Tank reads blobs, such as "/run/containerd/containerd.sock". It is
# for the install in which containerd keeps its own content store (config containerd --without-content).
# Empty: Tank is containerd's content store.
containerd_address = ""

# false: containerd downloads every blob of an image, as with its own overlayfs. Tank does not unpack a layer again
# that it already has. true: containerd does not download the blob of such a layer. Use this on nodes whose containerd
# discards blobs after unpacking (discard_unpacked_layers). On other nodes images become incomplete: they can't be
# pushed, exported or run by another snapshotter. A namespace can also get layers that its registry would not give it,
# so do not combine this with content_sharing_policy = "isolated".
skip_known_blobs = false

# false: the commit of a snapshot waits until everything that was written to it is on the disk; containerd lets no other
# call change its database meanwhile. true: it does not wait, which makes builds faster that commit large snapshots
# (serve). A power cut within the next half minute then leaves committed snapshots without some of their files or with
# empty ones, and neither Tank nor containerd finds out. Use it on machines whose builds can be repeated. Layers that
# Tank unpacked itself are compared with their seals after a power cut, whatever this says.
unsynced_commits = false

# trace, debug, info, warn, error or fatal.
log_level = "info"

# Directory of <registry>/hosts.toml files with mirrors and certificates, in the format of containerd.
hosts_dir = "` + defaultHosts + `"

# Root of the commands other than serve, if neither --root nor $TANK_CACHE names one.
# Empty: for uid 0 the daemon's root if there is one, else $XDG_CACHE_HOME/tank, else ~/.cache/tank.
image_cache = ""

# Programs that decode layers of other media types, such as encrypted layers (serve). Without a section
# [stream_processors], Tank runs the programs in the config of the containerd that calls it. With such a section, even
# if it is empty, Tank runs only the programs in it:
# [stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
#   accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
#   returns = "application/vnd.oci.image.layer.v1.tar+gzip"
#   path = "ctd-decoder"
#   args = ["--decryption-keys-path", "/etc/containerd/ocicrypt/keys"]
#   env = ["OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"]
`

// readSettings reads the first of these files that exists. An unknown key is an error, because otherwise a
// misspelt setting would have no effect.
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
			return s, usageError{
				fmt.Errorf("config %s: mode %q: neither %q nor %q", name, s.Mode, modeOverlay, modeDirectory),
			}
		}
		return s, nil
	}
	return s, nil
}

// hasSection reports whether a TOML file has a section.
func hasSection(data []byte, name string) bool {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return false
	}
	_, ok := all[name]
	return ok
}

// settingsFor reads the config of serve or of the other commands, once. It sets the log level of the config
// unless a flag did.
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

// configFiles returns the names of the config, of which the first that exists is read. serve does not read
// the file of a user, who must not decide where the daemon keeps its files.
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

// first returns the first string that is not empty, or "".
func first(choices ...string) string {
	for _, s := range choices {
		if s != "" {
			return s
		}
	}
	return ""
}
