package containerdconfig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/internal/socket"
)

// Check returns what does not fit Tank in a containerd config. It returns an error only if the file can not be read.
func (in Install) Check(ctx context.Context, file string) ([]Finding, error) {
	var found findings
	config, ok, err := read(ctx, file, readAnyFile, &found)
	if err != nil || !ok {
		return found, err
	}
	k := &checker{Config: config, Install: in, findings: &found}
	k.proxies()
	k.contentStores()
	if !k.findTank() {
		return found, nil
	}
	if !answers(ctx, in.Address) {
		found.note("Nobody answers on %s now. Start the daemon before containerd.", in.Address)
	}
	k.snapshotProxy()
	k.transfer()
	k.diffService()
	k.ownStore()
	k.sharing()
	k.streamProcessors()
	if plugin := k.disabledCRI(); plugin != "" {
		k.note("CRI is disabled (%q in disabled_plugins): ctr and nerdctl work, but no kubelet can use this containerd.",
			plugin)
	} else {
		k.cri()
	}
	return found, nil
}

// answers says whether somebody listens on a socket, as far as this user may know.
func answers(ctx context.Context, address string) bool {
	path, release, err := socket.Path(filepath.Split(address))
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	defer release()
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	conn.Close()
	return true
}

// checker looks at one config.
type checker struct {
	*Config
	Install
	*findings

	snapshotter, differ string // names of Tank's proxies, "" for none
}

// The types of proxies that are looked at, and what containerd has of its own: its plugins of the same names can't be proxies as well.
var proxyTypes = map[string]struct {
	uri     string
	builtIn []string
}{
	"snapshot": {"io.containerd.snapshotter.v1", []string{"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs"}},
	"content":  {"io.containerd.content.v1", []string{"content"}},
	"diff":     {"io.containerd.differ.v1", []string{"walking", "erofs"}},
	"sandbox":  {"io.containerd.sandbox.controller.v1", []string{"shim"}},
}

// typeOf returns the short name of a proxy's type, "" when containerd knows no such type.
func typeOf(p proxyPlugin) string {
	for short, t := range proxyTypes {
		if p.Type == short || p.Type == t.uri {
			return short
		}
	}
	return ""
}

// named lists the proxies of a type that are not disabled, by name.
func (k *checker) named(kind string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(k.ProxyPlugins)) {
		if typeOf(k.ProxyPlugins[name]) == kind && !slices.Contains(k.DisabledPlugins, proxyTypes[kind].uri+"."+name) {
			names = append(names, name)
		}
	}
	return names
}

// exists says whether containerd has a plugin of this name: a proxy, or one of its own.
func (k *checker) exists(kind, name string) bool {
	t := proxyTypes[kind]
	return slices.Contains(k.named(kind), name) ||
		slices.Contains(t.builtIn, name) && !slices.Contains(k.DisabledPlugins, t.uri+"."+name)
}

// proxies looks for what ends containerd with a panic.
func (k *checker) proxies() {
	for _, name := range slices.Sorted(maps.Keys(k.ProxyPlugins)) {
		p := k.ProxyPlugins[name]
		switch kind := typeOf(p); {
		case kind == "":
			k.wrong("[proxy_plugins.%s] has the type %q, which containerd does not know: it panics at its start.", name, p.Type)
		case slices.Contains(proxyTypes[kind].builtIn, name):
			k.wrong("[proxy_plugins.%s] has the name of containerd's own plugin %s.%s: containerd panics at its start, even if that is disabled.",
				name, proxyTypes[kind].uri, name)
		case p.Address == "":
			k.wrong("[proxy_plugins.%s] has no address.", name)
		}
	}
}

// contentStores: containerd works with exactly one.
func (k *checker) contentStores() {
	const own = pluginContent
	proxies := k.named("content")
	disabled := slices.Contains(k.DisabledPlugins, own)
	switch {
	case len(proxies) > 1:
		k.wrong("There are %d proxies of type content (%s): containerd loads its database with exactly one content store, and without it nothing pulls or runs.",
			len(proxies), strings.Join(proxies, ", "))
	case len(proxies) == 1 && !disabled:
		k.wrong("[proxy_plugins.%s] is a content store beside containerd's own: containerd loads its database with exactly one. "+
			"Add %q to disabled_plugins.", proxies[0], own)
	case len(proxies) == 0 && disabled:
		k.wrong("containerd's own content store is disabled (%q in disabled_plugins), and no proxy takes its place: containerd can't load its database.", own)
	}
	if len(proxies) == 1 && k.isTank(k.ProxyPlugins[proxies[0]]) && !k.Content {
		k.wrong("[proxy_plugins.%s] makes Tank the content store, but Tank's own config has containerd_address: Tank reads blobs from containerd and serves none.",
			proxies[0])
	}
	if !disabled && k.Content && len(proxies) == 0 {
		k.wrong("Tank is not containerd's content store: either add the proxy of type content, " +
			"or set containerd_address in Tank's own config, so that Tank finds the blobs.")
	}
	var grpc struct {
		Address string `toml:"address"`
	}
	if !k.Content && k.decode(pluginGRPC, &grpc, k.findings) {
		if a := cmp.Or(grpc.Address, DefaultAddress); a != k.ContainerdAddress {
			k.wrong("This containerd listens on %s, but containerd_address in Tank's own config is %s.", a, k.ContainerdAddress)
		}
	}
}

// isTank says whether a proxy leads to Tank's socket.
func (k *checker) isTank(p proxyPlugin) bool {
	return filepath.Clean(strings.TrimPrefix(p.Address, "unix://")) == k.Address
}

// findTank finds the proxies that lead to Tank. Without a snapshotter there is nothing more to be said.
func (k *checker) findTank() bool {
	find := func(kind, name string) string {
		names := k.named(kind)
		if i := slices.IndexFunc(names, func(n string) bool { return k.isTank(k.ProxyPlugins[n]) }); i >= 0 {
			return names[i]
		}
		if slices.Contains(names, name) { // it goes to the wrong socket
			k.wrong("[proxy_plugins.%s] has the address %s; Tank listens on %s.", name, k.ProxyPlugins[name].Address, k.Address)
			return name
		}
		return ""
	}
	if k.Content && len(k.named("content")) > 0 && find("content", "tank-content") == "" {
		k.wrong("The content store is the proxy %s and not Tank, which then has none of the blobs.", k.named("content")[0])
	}
	k.differ = find("diff", "tank-diff")
	if k.snapshotter = find("snapshot", "tank"); k.snapshotter == "" {
		k.wrong("No proxy plugin of type snapshot has Tank's address %s: containerd does not use Tank.", k.Address)
		return false
	}
	if k.differ == "" {
		k.wrong("No proxy plugin of type diff has Tank's address %s: containerd would unpack layers itself, after their download.", k.Address)
	}
	return true
}

// snapshotProxy looks at what the snapshotter is said to do, and at what others learn of it.
func (k *checker) snapshotProxy() {
	p, at := k.ProxyPlugins[k.snapshotter], fmt.Sprintf("[proxy_plugins.%s]", k.snapshotter)
	may := k.capabilities()
	why := "in directory mode"
	if k.UserNS {
		why = "inside a user namespace"
	}
	for _, c := range []struct{ name, missing, wrong string }{
		{capRebase, "layers are unpacked one after the other", "files that upper layers delete would come back"},
		{capRemapIDs, "containers with a user namespace have all their files copied and changed", "their files would have the wrong owners, or they would not start"},
	} {
		has, allowed := slices.Contains(p.Capabilities, c.name), slices.Contains(may, c.name)
		switch {
		case has && !allowed:
			k.wrong("%s has the capability %q, which Tank does not have %s: %s.", at, c.name, why, c.wrong)
		case !has && allowed:
			k.wrong("%s lacks the capability %q: %s.", at, c.name, c.missing)
		}
	}
	switch root := p.Exports["root"]; {
	case root == "":
		k.wrong("%s exports no root: the kubelet looks for the image file system where there is none, and frees no space.", at)
	case filepath.Clean(root) != k.Root:
		k.wrong("%s exports the root %s, but Tank's is %s: the kubelet looks at the wrong file system.", at, root, k.Root)
	}
	if v := p.Exports["enable_remote_snapshot_annotations"]; v != "true" {
		k.wrong("%s exports enable_remote_snapshot_annotations = %q instead of \"true\": Tank is not told which layers follow, and has to guess.", at, v)
	}
}

// transfer looks at the service that pulls for ctr, nerdctl and CRI.
func (k *checker) transfer() {
	transfer := struct {
		MaxUnpacks int `toml:"max_concurrent_unpacks"`
		Unpack     []struct {
			Snapshotter string `toml:"snapshotter"`
			Differ      string `toml:"differ"`
			Optional    bool   `toml:"optional"`
		} `toml:"unpack_config"`
	}{MaxUnpacks: 1}
	at := fmt.Sprintf("[plugins.'%s']", pluginTransfer)
	if !k.decode(pluginTransfer, &transfer, k.findings) {
		return
	}
	if slices.Contains(k.capabilities(), capRebase) && transfer.MaxUnpacks < 2 {
		k.wrong("%s has max_concurrent_unpacks = %d: layers are unpacked one after the other. 4 is a good number.", at, transfer.MaxUnpacks)
	}
	if transfer.Unpack == nil {
		k.wrong("%s has no unpack_config for the snapshotter %q: pulls with it end with \"no unpack platforms defined\".", at, k.snapshotter)
		return
	}
	var tank, overlayfs bool
	for _, u := range transfer.Unpack {
		if !u.Optional && !k.exists("snapshot", u.Snapshotter) {
			k.wrong("%s has an unpack_config for the snapshotter %q, which does not exist: the transfer service is not loaded, and nothing pulls.", at, u.Snapshotter)
		}
		if !u.Optional && u.Differ != "" && !k.exists("diff", u.Differ) {
			k.wrong("%s has an unpack_config with the differ %q, which does not exist: the transfer service is not loaded, and nothing pulls.", at, u.Differ)
		}
		overlayfs = overlayfs || u.Snapshotter == containerdSnapshotter
		if u.Snapshotter != k.snapshotter || tank {
			continue
		}
		tank = true
		if k.differ != "" && u.Differ != k.differ {
			k.wrong("%s unpacks for %q with the differ %q instead of %q: containerd unpacks layers itself, after their download.",
				at, k.snapshotter, cmp.Or(u.Differ, "walking"), k.differ)
		}
	}
	if !tank {
		k.wrong("%s has no unpack_config for the snapshotter %q: pulls with it end with \"no unpack platforms defined\".", at, k.snapshotter)
	}
	if !overlayfs && k.exists("snapshot", containerdSnapshotter) {
		k.wrong("%s has no unpack_config for %s: defining one drops containerd's own, and nothing could be pulled for %s, on the way back for instance.",
			at, containerdSnapshotter, containerdSnapshotter)
	}
}

// diffService looks at who applies and compares layers for clients that unpack themselves.
func (k *checker) diffService() {
	diff := struct {
		Order []string `toml:"default"`
	}{[]string{"walking"}}
	at := fmt.Sprintf("[plugins.'%s']", pluginDiff)
	if !k.decode(pluginDiff, &diff, k.findings) {
		return
	}
	for _, name := range diff.Order {
		if !k.exists("diff", name) {
			k.wrong("%s names the differ %q in default, which does not exist: the service is not loaded.", at, name)
		}
	}
	tank, walking := slices.Index(diff.Order, k.differ), slices.Index(diff.Order, "walking")
	switch {
	case walking < 0:
		k.wrong("%s lacks \"walking\" in default: nobody unpacks for other snapshotters.", at)
	case k.differ != "" && tank < 0:
		k.wrong("%s lacks %q in default: for clients that unpack themselves, as `ctr images pull --local` does, containerd would unpack.", at, k.differ)
	case k.differ != "" && tank > walking:
		k.wrong("%s has %q after \"walking\" in default, where it is never asked.", at, k.differ)
	}
}
