package containerdconfig

import (
	"cmp"
	"slices"
)

// unpackConfig is one entry of the transfer service's unpack_config.
type unpackConfig struct {
	Snapshotter string `toml:"snapshotter"`
	Differ      string `toml:"differ"`
	Optional    bool   `toml:"optional"`
}

// transfer checks the section of the transfer service, which pulls for ctr, nerdctl and CRI.
func (k *checker) transfer() {
	transfer := struct {
		MaxUnpacks int            `toml:"max_concurrent_unpacks"`
		Unpack     []unpackConfig `toml:"unpack_config"`
	}{MaxUnpacks: 1}
	at := section(pluginTransfer)
	if !k.decode(pluginTransfer, &transfer) {
		return
	}
	if slices.Contains(k.in.capabilities(), rebase) && transfer.MaxUnpacks < 2 {
		k.wrong(at, "has max_concurrent_unpacks = %d: layers are unpacked one after the other", transfer.MaxUnpacks).
			remedy("4 is a good number.")
	}
	if transfer.Unpack == nil {
		k.noUnpackConfig()
		return
	}
	var tank, overlayfs bool
	for _, u := range transfer.Unpack {
		k.unpackConfig(u)
		overlayfs = overlayfs || u.Snapshotter == defaultSnapshotter
		if u.Snapshotter != k.snapshotter || tank {
			continue
		}
		tank = true
		if k.differ != "" && u.Differ != k.differ {
			k.wrong(at, "unpacks for %q with the differ %q instead of %q: containerd unpacks layers itself, "+
				"after their download",
				k.snapshotter, cmp.Or(u.Differ, "walking"), k.differ)
		}
	}
	if !tank {
		k.noUnpackConfig()
	}
	if !overlayfs && k.exists("snapshot", defaultSnapshotter) {
		k.wrong(at, "has no unpack_config for %[1]s: defining one drops containerd's own, and nothing can be "+
			"pulled for %[1]s, for example after a return to it", defaultSnapshotter)
	}
}

func (k *checker) noUnpackConfig() {
	k.wrong(section(pluginTransfer), "has no unpack_config for the snapshotter %q: pulls with it end with \"no "+
		"unpack platforms defined\"", k.snapshotter)
}

// unpackConfig checks that the plugins of an entry exist, because otherwise containerd does not load the
// transfer service.
func (k *checker) unpackConfig(u unpackConfig) {
	if !u.Optional && !k.exists("snapshot", u.Snapshotter) {
		k.wrong(section(pluginTransfer), "has an unpack_config for the snapshotter %q, which does not exist: "+
			"the transfer service is not loaded, and nothing pulls", u.Snapshotter)
	}
	if !u.Optional && u.Differ != "" && !k.exists("diff", u.Differ) {
		k.wrong(section(pluginTransfer), "has an unpack_config with the differ %q, which does not exist: the "+
			"transfer service is not loaded, and nothing pulls", u.Differ)
	}
}

// diffService checks the order of the differs, which apply and compare layers for clients that unpack themselves.
func (k *checker) diffService() {
	diff := struct {
		Order []string `toml:"default"`
	}{[]string{"walking"}}
	at := section(pluginDiff)
	if !k.decode(pluginDiff, &diff) {
		return
	}
	for _, name := range diff.Order {
		if !k.exists("diff", name) {
			k.wrong(at, "names the differ %q in default, which does not exist: the service is not loaded", name)
		}
	}
	tank, walking := slices.Index(diff.Order, k.differ), slices.Index(diff.Order, "walking")
	switch {
	case walking < 0:
		k.wrong(at, "lacks \"walking\" in default: no differ unpacks for other snapshotters")
	case k.differ != "" && tank < 0:
		k.wrong(at, "lacks %q in default: for clients that unpack themselves, such as `ctr images pull --local`, "+
			"containerd unpacks layers itself", k.differ)
	case k.differ != "" && tank > walking:
		k.wrong(at, "has %q after \"walking\" in default, where it is never used", k.differ)
	}
}
