// Package containerdconfig knows the configuration of a containerd: it reads a config file with its imports, reports what
// in it does not fit Tank, writes the file that containerd imports to use Tank, and finds the stream processors.
//
// It owns nothing on disk, and writes no file: the command prints what it returns.
//
// Its invariant: it reads a config as containerd does, each file migrated by itself and then merged, so that what it
// reports about a key is what containerd will do.
//
// The surprising rule: a config that is wrong is no error. Read and Check return findings, and an error only if the
// first file can't be read at all. ProcessorsOf is stricter: Tank runs these programs with its own rights, so it takes
// only files that nobody but root and its own user can write.
package containerdconfig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/internal/processor"
	"github.com/tank-snapshotter/tank/internal/userfile"
)

// What containerd has when its config says nothing else.
const (
	DefaultAddress        = "/run/containerd/containerd.sock"
	containerdRoot        = "/var/lib/containerd"
	containerdSnapshotter = "overlayfs"
	newestConfigVersion   = 4
	maxContainerdConfig   = 4 << 20 // bytes of one file
	// containerdImports is what `containerd config default` imports, whether or not there is anything.
	containerdImports = "/etc/containerd/conf.d/*.toml"
)

// The sections of plugins that are looked at.
const (
	pluginTransfer = "io.containerd.transfer.v1.local"
	pluginDiff     = "io.containerd.service.v1.diff-service"
	pluginImages   = "io.containerd.cri.v1.images"
	pluginRuntime  = "io.containerd.cri.v1.runtime"
	pluginCRI      = "io.containerd.grpc.v1.cri" // CRI's server; until version 2 of the config all of CRI
	pluginGRPC     = "io.containerd.server.v1.grpc"
	pluginMetadata = "io.containerd.metadata.v1.bolt"
	pluginContent  = "io.containerd.content.v1.content"
)

// Config is the part of containerd's config that matters here, with the names that containerd gives it.
type Config struct {
	Version         int                    `toml:"version"`
	OwnRoot         string                 `toml:"root"`
	Imports         []string               `toml:"imports"`
	DisabledPlugins []string               `toml:"disabled_plugins"`
	ProxyPlugins    map[string]proxyPlugin `toml:"proxy_plugins"`
	Plugins         map[string]any         `toml:"plugins"`
	// StreamProcessors are by ID.
	StreamProcessors map[string]processor.Processor `toml:"stream_processors"`
	GRPC             struct {
		Address string `toml:"address"`
	} `toml:"grpc"`

	files []string // that were read
}

// readFile reads a file of containerd's config.
type readFile func(ctx context.Context, name string) ([]byte, error)

func readAnyFile(ctx context.Context, name string) ([]byte, error) {
	return userfile.ReadFile(ctx, name, maxContainerdConfig)
}

type proxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Exports      map[string]string `toml:"exports"`
	Capabilities []string          `toml:"capabilities"`
}

// Finding is one sentence about a config. A note is nothing that has to be changed.
type Finding struct {
	Text string
	Note bool
}

// findings collects sentences.
type findings []Finding

func (f *findings) wrong(format string, args ...any) {
	*f = append(*f, Finding{Text: fmt.Sprintf(format, args...)})
}

func (f *findings) note(format string, args ...any) {
	*f = append(*f, Finding{Text: "Note: " + fmt.Sprintf(format, args...), Note: true})
}

// read reads a config as containerd does: the file, then its imports in their order, then theirs; each is brought to the
// newest version by itself and then merged. ok is false when containerd would not get through. An error is about the file itself.
func read(ctx context.Context, file string, read readFile, found *findings) (
	all *Config, ok bool, err error,
) {
	if _, err := os.Stat(file); err != nil {
		return nil, false, err
	}
	all = &Config{Plugins: map[string]any{}, ProxyPlugins: map[string]proxyPlugin{},
		StreamProcessors: map[string]processor.Processor{}}
	pending, seen := []string{file}, map[string]bool{}
	for ; len(pending) > 0; pending = pending[1:] {
		name := pending[0]
		if seen[name] {
			continue
		}
		seen[name] = true
		c, good := readOne(ctx, name, read, found)
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if !good {
			return nil, false, nil
		}
		c.migrate(name, found)
		all.merge(c)
		all.files = append(all.files, name)
		imports, good := c.resolveImports(name, found)
		if !good {
			return nil, false, nil
		}
		pending = append(pending, imports...)
	}
	return all, true, nil
}

func readOne(ctx context.Context, name string, read readFile, found *findings) (*Config, bool) {
	var c Config
	data, err := read(ctx, name)
	if err != nil {
		found.wrong("%s can't be read, so containerd does not start: %v.", name, err)
		return nil, false
	}
	err = toml.Unmarshal(data, &c)
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		line, column := syntax.Position()
		hint := ""
		if slices.Contains(syntax.Key(), "exports") {
			hint = " Values of exports are strings, in quotes."
		}
		found.wrong("%s, line %d, column %d: %s: containerd does not start.%s", name, line, column, strings.TrimPrefix(syntax.Error(), "toml: "), hint)
		return nil, false
	}
	if err != nil {
		found.wrong("%s: %v: containerd does not start.", name, err)
		return nil, false
	}
	if c.Version > newestConfigVersion {
		found.wrong("%s has version %d; the newest that containerd 2.4 reads is %d, and it does not start.", name, c.Version, newestConfigVersion)
		return nil, false
	}
	for _, plugin := range c.DisabledPlugins {
		if c.Version >= 2 && !strings.Contains(plugin, ".") {
			found.wrong("%s has %q in disabled_plugins, which is not the name of a plugin since version 2: containerd does not "+
				"start. The name of CRI is %q.",
				name, plugin, pluginCRI)
			return nil, false
		}
	}
	if c.Plugins == nil {
		c.Plugins = map[string]any{}
	}
	return &c, true
}

// resolveImports returns the files that a config imports: relative to it, and patterns only when they have a star.
func (c *Config) resolveImports(parent string, found *findings) (files []string, ok bool) {
	for _, name := range c.Imports {
		if name = filepath.Clean(name); !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(parent), name)
		}
		if !strings.Contains(name, "*") {
			if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
				found.wrong("%s imports %s, which is not there: containerd does not start.", parent, name)
				return nil, false
			}
			files = append(files, name)
			continue
		}
		matches, err := filepath.Glob(name)
		switch {
		case err != nil:
			found.wrong("%s imports %s, which is no pattern, and containerd does not start: %v.", parent, name, err)
			return nil, false
		case len(matches) == 0 && name != containerdImports:
			found.note("%s imports %s, which matches no file.", parent, name)
		}
		files = append(files, matches...)
	}
	return files, true
}

// migrate brings a file to the newest version, as far as it is looked at here.
func (c *Config) migrate(file string, found *findings) {
	if c.Version < 2 { // plugins had short names
		if cri, ok := c.Plugins["cri"]; ok {
			c.Plugins[pluginCRI] = cri
			delete(c.Plugins, "cri")
		}
		for i, name := range c.DisabledPlugins {
			if name == "cri" {
				c.DisabledPlugins[i] = pluginCRI
			}
		}
	}
	if c.GRPC.Address != "" && c.Plugins[pluginGRPC] == nil {
		c.Plugins[pluginGRPC] = map[string]any{"address": c.GRPC.Address}
	}
	old, _ := c.Plugins[pluginCRI].(map[string]any)
	containerd, _ := old["containerd"].(map[string]any)
	moved := len(pick(old, "registry", "sandbox_image", "max_concurrent_downloads", "image_pull_with_sync_fs")) > 0 || containerd != nil
	switch {
	case !moved:
		return
	case c.Version >= newestConfigVersion:
		found.wrong("%s has keys of version 2 in [plugins.'%s'], which containerd ignores in a file of version %d: "+
			"they belong into [plugins.'%s'] and [plugins.'%s'].", file, pluginCRI, c.Version, pluginImages, pluginRuntime)
		return
	case c.Version > 2:
		found.wrong("%s has keys of version 2 in [plugins.'%s'], which containerd 2.2 ignores in a file of version %d: "+
			"they belong into [plugins.'%s'] and [plugins.'%s'].", file, pluginCRI, c.Version, pluginImages, pluginRuntime)
	}
	c.migrateCRI(old, containerd)
}

// migrateCRI takes the old section of CRI apart. What it says takes the place of what the new sections of the same file say of images.
func (c *Config) migrateCRI(old, containerd map[string]any) {
	images, runtime := c.section(pluginImages), c.section(pluginRuntime)
	maps.Copy(images, pick(old, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs"))
	maps.Copy(images, pick(containerd, "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"))
	if pause, ok := old["sandbox_image"]; ok {
		pinned, _ := images["pinned_images"].(map[string]any)
		images["pinned_images"] = mergeMaps(pinned, map[string]any{"sandbox": pause})
	}
	handlers, _ := containerd["runtimes"].(map[string]any)
	for name, handler := range handlers {
		// containerd 2.4 looks for the key "snapshot" where "snapshotter" was, and writes it to runtime_platform where it reads runtime_platforms.
		if h, ok := handler.(map[string]any); ok && h["snapshot"] != nil {
			platforms, _ := images["runtime_platform"].(map[string]any)
			images["runtime_platform"] = mergeMaps(platforms, map[string]any{name: map[string]any{"snapshotter": h["snapshot"]}})
		}
	}
	sub, _ := runtime["containerd"].(map[string]any)
	if handlers != nil && sub["runtimes"] == nil {
		runtime["containerd"] = mergeMaps(sub, map[string]any{"runtimes": handlers})
	}
}

// section returns the section of a plugin, to write to.
func (c *Config) section(plugin string) map[string]any {
	m, ok := c.Plugins[plugin].(map[string]any)
	if !ok {
		m = map[string]any{}
		c.Plugins[plugin] = m
	}
	return m
}

// merge adds what a later file says: lists are joined at the top and replaced in the sections of plugins, proxies are replaced whole.
func (c *Config) merge(later *Config) {
	c.OwnRoot = cmp.Or(later.OwnRoot, c.OwnRoot)
	for _, name := range later.DisabledPlugins {
		if !slices.Contains(c.DisabledPlugins, name) {
			c.DisabledPlugins = append(c.DisabledPlugins, name)
		}
	}
	maps.Copy(c.ProxyPlugins, later.ProxyPlugins)
	maps.Copy(c.StreamProcessors, later.StreamProcessors)
	c.Plugins = mergeMaps(c.Plugins, later.Plugins)
}

// mergeMaps returns both, with later's values; maps in both are merged.
func mergeMaps(m, later map[string]any) map[string]any {
	out := maps.Clone(m)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range later {
		a, isMap := out[k].(map[string]any)
		b, both := v.(map[string]any)
		if isMap && both {
			v = mergeMaps(a, b)
		}
		out[k] = v
	}
	return out
}

// pick returns those of the keys that m has.
func pick(m map[string]any, keys ...string) map[string]any {
	out := map[string]any{}
	for _, k := range keys {
		if v, ok := m[k]; ok {
			out[k] = v
		}
	}
	return out
}

// decode reads the section of a plugin into v, which has the defaults. It says whether containerd could.
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
		found.wrong("[plugins.'%s'] is not as containerd expects it, which does not start: %s.", plugin, strings.TrimPrefix(err.Error(), "toml: "))
	}
	return err == nil
}
