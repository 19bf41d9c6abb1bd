package containerdconfig

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// criImages is what CRI's image service reads.
type criImages struct {
	Snapshotter  string                 `toml:"snapshotter"`
	Platforms    map[string]criPlatform `toml:"runtime_platforms"`
	Misnamed     map[string]any         `toml:"runtime_platform"` // what containerd 2 makes of a config of version 2
	SandboxImage string                 `toml:"sandbox_image"`    // where it was until version 2
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

// criRuntime is what CRI's runtime service reads.
type criRuntime struct {
	SandboxImage string `toml:"sandbox_image"`
	Containerd   struct {
		Runtimes map[string]criPlatform `toml:"runtimes"`
	} `toml:"containerd"`
}

// cri looks at what Kubernetes uses.
func (k *checker) cri() {
	images := criImages{Snapshotter: containerdSnapshotter, NoLabels: true, Downloads: 3}
	var runtime criRuntime
	if !k.decode(pluginImages, &images, k.findings) || !k.decode(pluginRuntime, &runtime, k.findings) {
		return
	}
	if !k.exists("snapshot", images.Snapshotter) {
		k.wrong("[plugins.'%s'] has the snapshotter %q, which does not exist: CRI is not loaded.", pluginImages, images.Snapshotter)
	}
	if len(images.Misnamed) > 0 {
		k.wrong("[plugins.'%s'] has runtime_platform, which containerd ignores: the key is runtime_platforms. "+
			"containerd itself writes the wrong one when it brings a config of version 2 up to date.", pluginImages)
	}
	for section, image := range map[string]string{pluginImages: images.SandboxImage, pluginRuntime: runtime.SandboxImage} {
		if image != "" {
			k.wrong("[plugins.'%s'] has sandbox_image, which containerd ignores there: the pause image is [plugins.'%s'.pinned_images] sandbox.", section, pluginImages)
		}
	}
	if k.handlers(images, runtime) {
		k.localPull(images)
		k.discarded(images.Discard)
	}
}

// handlers looks at which runtime handlers use Tank, and says whether any does. CRI has two places for a handler's snapshotter: where images
// are pulled to, and where containers are made. What neither says is images.Snapshotter.
func (k *checker) handlers(images criImages, runtime criRuntime) (used bool) {
	var by []string
	names := map[string]bool{}
	for name := range images.Platforms {
		names[name] = true
	}
	for name := range runtime.Containerd.Runtimes {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		platform, own := images.Platforms[name], runtime.Containerd.Runtimes[name].Snapshotter
		made, to := cmp.Or(own, images.Snapshotter), cmp.Or(platform.Snapshotter, images.Snapshotter)
		if made != k.snapshotter && to != k.snapshotter {
			continue
		}
		if made == k.snapshotter {
			by = append(by, name)
		}
		if made == to {
			continue
		}
		if _, said := images.Platforms[name]; !said { // containerd 2.3 and later take over what the other place says
			k.note("Containers of the runtime handler %q are made with %q; containerd 2.2 pulls their images with %q, unless [plugins.'%s'.runtime_platforms.%s] has that snapshotter too.",
				name, made, to, pluginImages, name)
			continue
		}
		k.wrong("The runtime handler %q has its images pulled with %q and its containers made with %q, so images are unpacked a second time. Set the snapshotter in "+
			"[plugins.'%s'.runtime_platforms.%s] and in [plugins.'%s'.containerd.runtimes.%s].", name, to, made, pluginImages, name, pluginRuntime, name)
	}
	switch {
	case images.Snapshotter == k.snapshotter:
		return true
	case len(by) > 0:
		k.note("CRI uses Tank for the runtime handlers %s alone. The kubelet counts and frees space only for its default snapshotter, %q.",
			strings.Join(by, ", "), images.Snapshotter)
		return true
	}
	k.wrong("[plugins.'%s'] has the snapshotter %q: pods do not use Tank.", pluginImages, images.Snapshotter)
	return false
}

// localPull looks for each setting that silently takes CRI's pulls away from the transfer service.
func (k *checker) localPull(images criImages) {
	for _, s := range []struct {
		set  bool
		name string
		then string
	}{
		{images.Local, "use_local_image_pull = true", "leave it out"},
		{!images.NoLabels, "disable_snapshot_annotations = false", "Tank gets them from the transfer service"},
		{images.Discard, "discard_unpacked_layers = true", "leave it out"},
		{len(images.Registry.Mirrors) > 0, "registry.mirrors", "use hosts.toml files below registry.config_path"},
		{len(images.Registry.Configs) > 0, "registry.configs", "use hosts.toml files below registry.config_path"},
		{len(images.Registry.Auths) > 0, "registry.auths", "use image pull secrets"},
		{images.Downloads != 3, fmt.Sprintf("max_concurrent_downloads = %d", images.Downloads), fmt.Sprintf("set it in [plugins.'%s']", pluginTransfer)},
		{images.SyncFS, "image_pull_with_sync_fs = true", "Tank syncs what it unpacks"},
	} {
		if s.set {
			k.wrong("[plugins.'%s'] has %s: CRI then pulls without the transfer service, and layers are unpacked one after the other; %s.", pluginImages, s.name, s.then)
		}
	}
}
