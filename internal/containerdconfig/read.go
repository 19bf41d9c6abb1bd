package containerdconfig

import (
	"cmp"
	"context"
	"errors"
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

// readFile reads one file of a config.
type readFile func(ctx context.Context, name string) ([]byte, error)

func readAnyFile(ctx context.Context, name string) ([]byte, error) {
	return userfile.ReadFile(ctx, name, maxFile)
}

// read reads a config as containerd does: first the file, then the files that it imports, in their order,
// then the files that those import. It migrates each file by itself and then merges it. ok is false if
// containerd can't read the config; the last finding is the reason. read returns an error if the first file
// does not exist or ctx ends.
func read(ctx context.Context, file string, open readFile, found *findings) (all *Config, ok bool, err error) {
	if _, err := os.Stat(file); err != nil {
		return nil, false, err
	}
	all = &Config{Plugins: map[string]any{}, ProxyPlugins: map[string]ProxyPlugin{},
		StreamProcessors: map[string]processor.Processor{}}
	seen := map[string]bool{}
	for pending := []string{file}; len(pending) > 0; pending = pending[1:] {
		name := pending[0]
		if seen[name] {
			continue
		}
		seen[name] = true
		c, readable := readOne(ctx, name, open, found)
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if !readable {
			return nil, false, nil
		}
		c.migrate(name, found)
		all.merge(c)
		all.files = append(all.files, name)
		imports, resolved := c.resolveImports(name, found)
		if !resolved {
			return nil, false, nil
		}
		pending = append(pending, imports...)
	}
	return all, true, nil
}

// readOne reads one file. It reports false, and adds a finding, if containerd can't read the file.
func readOne(ctx context.Context, name string, open readFile, found *findings) (*Config, bool) {
	var c Config
	data, err := open(ctx, name)
	if err != nil {
		found.wrong(name, "can't be read, so containerd does not start: %v", err)
		return nil, false
	}
	err = toml.Unmarshal(data, &c)
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		line, column := syntax.Position()
		f := found.wrong("", "%s, line %d, column %d: %s: containerd does not start", name, line, column,
			strings.TrimPrefix(syntax.Error(), "toml: "))
		if slices.Contains(syntax.Key(), "exports") {
			f.remedy("Values of exports are strings, in quotes.")
		}
		return nil, false
	}
	if err != nil {
		found.wrong("", "%s: %v: containerd does not start", name, err)
		return nil, false
	}
	if c.Version > newestVersion {
		found.wrong(name, "has version %d; the newest that containerd 2.4 reads is %d, and it does not start",
			c.Version, newestVersion)
		return nil, false
	}
	for _, plugin := range c.DisabledPlugins {
		if c.Version >= 2 && !strings.Contains(plugin, ".") {
			found.wrong(name, "has %q in disabled_plugins, which is not the name of a plugin since version 2: "+
				"containerd does not start", plugin).remedy("The name of CRI is %q.", pluginCRI)
			return nil, false
		}
	}
	if c.Plugins == nil {
		c.Plugins = map[string]any{}
	}
	return &c, true
}

// resolveImports returns the files that a config imports. Names are relative to the config, and only a name
// with a star is a pattern. ok is false if containerd does not start with these imports.
func (c *Config) resolveImports(parent string, found *findings) (files []string, ok bool) {
	for _, name := range c.Imports {
		if name = filepath.Clean(name); !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(parent), name)
		}
		if !strings.Contains(name, "*") {
			if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
				found.wrong(parent, "imports %s, which does not exist: containerd does not start", name)
				return nil, false
			}
			files = append(files, name)
			continue
		}
		matches, err := filepath.Glob(name)
		switch {
		case err != nil:
			found.wrong(parent, "imports %s, which is no pattern, and containerd does not start: %v", name, err)
			return nil, false
		case len(matches) == 0 && name != defaultImports:
			found.note(parent, "imports %s, which matches no file", name)
		}
		files = append(files, matches...)
	}
	return files, true
}

// merge adds the values of a file that is read later. It appends the lists at the top, replaces each proxy
// and stream processor of the same name as a whole, and merges the sections of plugins, in which later lists
// replace earlier ones.
func (c *Config) merge(later *Config) {
	c.Root = cmp.Or(later.Root, c.Root)
	for _, name := range later.DisabledPlugins {
		if !slices.Contains(c.DisabledPlugins, name) {
			c.DisabledPlugins = append(c.DisabledPlugins, name)
		}
	}
	maps.Copy(c.ProxyPlugins, later.ProxyPlugins)
	maps.Copy(c.StreamProcessors, later.StreamProcessors)
	c.Plugins = mergeMaps(c.Plugins, later.Plugins)
}

// mergeMaps returns the values of both maps. Where a key has a map in both, the two are merged; else later's
// value counts.
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
