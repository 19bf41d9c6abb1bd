package containerdconfig

import "maps"

// migrate brings the sections that are read here to the newest version, as containerd does.
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
	moved := pick(old, "registry", "sandbox_image", "max_concurrent_downloads", "image_pull_with_sync_fs")
	switch {
	case len(moved) == 0 && containerd == nil:
		return
	case c.Version >= newestVersion:
		found.wrong(file, "has keys of version 2 in %s, which containerd ignores in a file of version %d: they "+
			"belong into %s and %s", section(pluginCRI), c.Version, section(pluginImages), section(pluginRuntime))
		return
	case c.Version > 2:
		found.wrong(file, "has keys of version 2 in %s, which containerd 2.2 ignores in a file of version %d: "+
			"they belong into %s and %s", section(pluginCRI), c.Version, section(pluginImages), section(pluginRuntime))
	}
	c.migrateCRI(old, containerd)
}

// migrateCRI moves the keys of the old section of CRI, and of its table containerd, to the new sections.
// About images the old section takes precedence over the new one of the same file.
func (c *Config) migrateCRI(old, containerd map[string]any) {
	images, runtime := c.pluginSection(pluginImages), c.pluginSection(pluginRuntime)
	maps.Copy(images, pick(old, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs"))
	maps.Copy(images, pick(containerd, "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"))
	if pause, ok := old["sandbox_image"]; ok {
		pinned, _ := images["pinned_images"].(map[string]any)
		images["pinned_images"] = mergeMaps(pinned, map[string]any{"sandbox": pause})
	}
	handlers, _ := containerd["runtimes"].(map[string]any)
	for name, handler := range handlers {
		// containerd 2.4 has two faults here: it reads the key "snapshot" instead of "snapshotter", and it writes
		// runtime_platform although it later reads runtime_platforms.
		if h, ok := handler.(map[string]any); ok && h["snapshot"] != nil {
			platforms, _ := images["runtime_platform"].(map[string]any)
			images["runtime_platform"] = mergeMaps(platforms,
				map[string]any{name: map[string]any{"snapshotter": h["snapshot"]}})
		}
	}
	sub, _ := runtime["containerd"].(map[string]any)
	if handlers != nil && sub["runtimes"] == nil {
		runtime["containerd"] = mergeMaps(sub, map[string]any{"runtimes": handlers})
	}
}

// pluginSection returns the section of a plugin for changes, and makes it if there is none.
func (c *Config) pluginSection(plugin string) map[string]any {
	m, ok := c.Plugins[plugin].(map[string]any)
	if !ok {
		m = map[string]any{}
		c.Plugins[plugin] = m
	}
	return m
}

// pick returns those of the keys that m has, with their values.
func pick(m map[string]any, keys ...string) map[string]any {
	out := map[string]any{}
	for _, k := range keys {
		if v, ok := m[k]; ok {
			out[k] = v
		}
	}
	return out
}
