package containerdconfig

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// criImages is the section of CRI's image service.
type criImages struct {
	Snapshotter  string                 `toml:"snapshotter"`
	Platforms    map[string]criPlatform `toml:"runtime_platforms"`
	Misnamed     map[string]any         `toml:"runtime_platform"` // what containerd makes of a config of version 2
	SandboxImage string                 `toml:"sandbox_image"`    // where it was up to version 2
	Local        bool                   `toml:"use_local_image_pull"`
	NoLabels     bool                   `toml:"disable_snapshot_annotations"`
	Discard      bool                   `toml:"discard_unpacked_layers"`
	Downloads    int                    `toml:"max_concurrent_downloads"`
	SyncFS       bool                   `toml:"image_pull_with_sync_fs"`
	Registry     struct {
		Mirrors map[string]any `toml:"mirrors"`
		Configs map[string]any `toml:"configs"`
		Auths   map[string]any `toml:"auths"`
	} `toml:"registry"`
}

type criPlatform struct {
	Snapshotter string `toml:"snapshotter"`
}

// criRuntime is the section of CRI's runtime service.
type criRuntime struct {
	SandboxImage string `toml:"sandbox_image"`
	Containerd   struct {
		Runtimes map[string]criPlatform `toml:"runtimes"`
	} `toml:"containerd"`
}

// cri checks the sections that Kubernetes uses.
func (k *checker) cri() {
	images := criImages{Snapshotter: defaultSnapshotter, NoLabels: true, Downloads: 3}
	var runtime criRuntime
	if !k.decode(pluginImages, &images) || !k.decode(pluginRuntime, &runtime) {
		return
	}
	at := section(pluginImages)
	if !k.exists("snapshot", images.Snapshotter) {
		k.wrong(at, "has the snapshotter %q, which does not exist: CRI is not loaded", images.Snapshotter)
	}
	if len(images.Misnamed) > 0 {
		k.wrong(at, "has runtime_platform, which containerd ignores: the key is runtime_platforms").
			remedy("containerd itself writes the wrong one when it migrates a config of version 2.")
	}
	for section, image := range map[string]string{
		at: images.SandboxImage, section(pluginRuntime): runtime.SandboxImage,
	} {
		if image != "" {
			k.wrong(section, "has sandbox_image, which containerd ignores there: the pause image is "+
				"[plugins.'%s'.pinned_images] sandbox", pluginImages)
		}
	}
	if k.handlers(images, runtime) {
		k.localPull(images)
		k.discarded(images.Discard)
	}
}

// handlers checks the snapshotters of the runtime handlers, and reports whether a handler uses Tank. CRI has
// two places for a handler's snapshotter: one for pulled images, one for containers. The default of both is
// images.Snapshotter.
func (k *checker) handlers(images criImages, runtime criRuntime) (used bool) {
	names := map[string]bool{}
	for name := range images.Platforms {
		names[name] = true
	}
	for name := range runtime.Containerd.Runtimes {
		names[name] = true
	}
	var withTank []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		platform, configured := images.Platforms[name]
		pulls := cmp.Or(platform.Snapshotter, images.Snapshotter)
		makes := cmp.Or(runtime.Containerd.Runtimes[name].Snapshotter, images.Snapshotter)
		if makes == k.snapshotter {
			withTank = append(withTank, name)
		}
		if makes == pulls || makes != k.snapshotter && pulls != k.snapshotter {
			continue
		}
		if !configured { // containerd 2.3 and later then use the runtime's snapshotter for images, too
			k.note("", "Containers of the runtime handler %q are made with %q; containerd 2.2 pulls their "+
				"images with %q, unless [plugins.'%s'.runtime_platforms.%s] has that snapshotter too",
				name, makes, pulls, pluginImages, name)
			continue
		}
		k.wrong("", "The runtime handler %q has its images pulled with %q and its containers made with %q, so "+
			"images are unpacked a second time", name, pulls, makes).
			remedy("Set the snapshotter in [plugins.'%s'.runtime_platforms.%s] and in "+
				"[plugins.'%s'.containerd.runtimes.%s].",
				pluginImages, name, pluginRuntime, name)
	}
	switch {
	case images.Snapshotter == k.snapshotter:
		return true
	case len(withTank) > 0:
		k.note("", "CRI uses Tank for the runtime handlers %s alone", strings.Join(withTank, ", ")).
			remedy("The kubelet counts and frees space only for its default snapshotter, %q.", images.Snapshotter)
		return true
	}
	k.wrong(section(pluginImages), "has the snapshotter %q: pods do not use Tank", images.Snapshotter)
	return false
}

// localPull checks for settings with which CRI pulls without the transfer service, and without a warning.
func (k *checker) localPull(images criImages) {
	const hosts = "Use hosts.toml files below registry.config_path."
	for _, s := range []struct {
		set    bool
		name   string
		remedy string
	}{
		{images.Local, "use_local_image_pull = true", "Leave it out."},
		{!images.NoLabels, "disable_snapshot_annotations = false", "Tank gets them from the transfer service."},
		{images.Discard, "discard_unpacked_layers = true", "Leave it out."},
		{len(images.Registry.Mirrors) > 0, "registry.mirrors", hosts},
		{len(images.Registry.Configs) > 0, "registry.configs", hosts},
		{len(images.Registry.Auths) > 0, "registry.auths", "Use image pull secrets."},
		{images.Downloads != 3, fmt.Sprintf("max_concurrent_downloads = %d", images.Downloads),
			"Set it in " + section(pluginTransfer) + "."},
		{images.SyncFS, "image_pull_with_sync_fs = true", "Tank syncs what it unpacks."},
	} {
		if s.set {
			k.wrong(section(pluginImages), "has %s: CRI then pulls without the transfer service, and layers "+
				"are unpacked one "+
				"after the other", s.name).remedy("%s", s.remedy)
		}
	}
}
