package containerdconfig

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/internal/socket"
)

// Check returns what in a containerd config, with its imports, does not fit this install. It returns an error
// if the file does not exist or ctx ends; a file that containerd can't read is a finding.
func (in Install) Check(ctx context.Context, file string) ([]Finding, error) {
	var found findings
	config, ok, err := read(ctx, file, readAnyFile, &found)
	if err != nil || !ok {
		return found.all(), err
	}
	k := &checker{in: in, config: config, findings: &found}
	k.proxies()
	k.contentStores()
	if !k.findTank() {
		return found.all(), nil
	}
	if !answers(ctx, in.Address) {
		k.note("", "Nobody answers on %s now", in.Address).remedy("Start the daemon before containerd.")
	}
	k.snapshotProxy()
	k.transfer()
	k.diffService()
	k.unreachableBlobs()
	k.isolation()
	k.streamProcessors()
	if plugin := k.disabledCRI(); plugin != "" {
		k.note("", "CRI is disabled (%q in disabled_plugins): ctr and nerdctl work, but no kubelet can use "+
			"this containerd",
			plugin)
	} else {
		k.cri()
	}
	return found.all(), nil
}

// answers reports whether a process accepts connections on a socket. It returns true if this user may not find out.
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

// checker checks one config for one install.
type checker struct {
	in     Install
	config *Config
	*findings

	snapshotter, differ string // names of Tank's proxies; "" if there is none
}

// decode reads the section of a plugin into v, which has containerd's defaults.
func (k *checker) decode(plugin string, v any) bool { return k.config.decode(plugin, v, k.findings) }

// proxyTypes are the types of proxies, by their short names, with the names of the plugins of the same type
// that are part of containerd. A proxy can't have the name of such a plugin.
var proxyTypes = map[string]struct {
	uri     string
	builtIn []string
}{
	"snapshot": {"io.containerd.snapshotter.v1",
		[]string{"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs"}},
	"content": {"io.containerd.content.v1", []string{"content"}},
	"diff":    {"io.containerd.differ.v1", []string{"walking", "erofs"}},
	"sandbox": {"io.containerd.sandbox.controller.v1", []string{"shim"}},
}

// typeOf returns the short name of a proxy's type, "" if containerd has no such type.
func typeOf(p ProxyPlugin) string {
	for short, t := range proxyTypes {
		if p.Type == short || p.Type == t.uri {
			return short
		}
	}
	return ""
}

func (k *checker) disabled(plugin string) bool {
	return slices.Contains(k.config.DisabledPlugins, plugin)
}

// enabledProxies returns the sorted names of the proxies of a type that are not disabled.
func (k *checker) enabledProxies(kind string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(k.config.ProxyPlugins)) {
		if typeOf(k.config.ProxyPlugins[name]) == kind && !k.disabled(proxyTypes[kind].uri+"."+name) {
			names = append(names, name)
		}
	}
	return names
}

// exists reports whether containerd has a plugin of this type and name, as a proxy or as a part of itself.
func (k *checker) exists(kind, name string) bool {
	t := proxyTypes[kind]
	return slices.Contains(k.enabledProxies(kind), name) ||
		slices.Contains(t.builtIn, name) && !k.disabled(t.uri+"."+name)
}

// proxySection returns the place of a proxy, for findings.
func proxySection(name string) string { return "[proxy_plugins." + name + "]" }

// proxies checks each proxy by itself. Most mistakes in them end containerd with a panic.
func (k *checker) proxies() {
	for _, name := range slices.Sorted(maps.Keys(k.config.ProxyPlugins)) {
		p, at := k.config.ProxyPlugins[name], proxySection(name)
		switch kind := typeOf(p); {
		case kind == "":
			k.wrong(at, "has the type %q, which containerd does not know: it panics at its start", p.Type)
		case slices.Contains(proxyTypes[kind].builtIn, name):
			k.wrong(at, "has the name of containerd's own plugin %s.%s: containerd panics at its start, even "+
				"if that is disabled",
				proxyTypes[kind].uri, name)
		case p.Address == "":
			k.wrong(at, "has no address")
		}
	}
}

// contentStores checks that there is one content store, and that it is the one that Tank expects.
func (k *checker) contentStores() {
	const own = pluginContent
	proxies := k.enabledProxies("content")
	disabled := k.disabled(own)
	switch {
	case len(proxies) > 1:
		k.wrong("", "There are %d proxies of type content (%s): containerd loads its database with exactly "+
			"one content store, "+
			"and without it nothing pulls or runs", len(proxies), strings.Join(proxies, ", "))
	case len(proxies) == 1 && !disabled:
		k.wrong(proxySection(proxies[0]), "is a content store beside containerd's own: containerd loads its "+
			"database with "+
			"exactly one").remedy("Add %q to disabled_plugins.", own)
	case len(proxies) == 0 && disabled:
		k.wrong("", "containerd's own content store is disabled (%q in disabled_plugins), and no proxy takes "+
			"its place: containerd can't load its database", own)
	}
	if len(proxies) == 1 && k.isTank(k.config.ProxyPlugins[proxies[0]]) && !k.in.Content {
		k.wrong(proxySection(proxies[0]), "makes Tank the content store, but Tank's own config has "+
			"containerd_address: Tank reads blobs from containerd and serves none")
	}
	if !disabled && k.in.Content && len(proxies) == 0 {
		k.wrong("", "Tank is not containerd's content store").remedy("Either add the proxy of type content, or " +
			"set containerd_address in Tank's own config, so that Tank finds the blobs.")
	}
	var grpc struct {
		Address string `toml:"address"`
	}
	if !k.in.Content && k.decode(pluginGRPC, &grpc) {
		if a := cmp.Or(grpc.Address, DefaultAddress); a != k.in.ContainerdAddress {
			k.wrong("", "This containerd listens on %s, but containerd_address in Tank's own config is %s",
				a, k.in.ContainerdAddress)
		}
	}
}

// isTank reports whether a proxy has Tank's socket as its address.
func (k *checker) isTank(p ProxyPlugin) bool {
	return filepath.Clean(strings.TrimPrefix(p.Address, "unix://")) == k.in.Address
}

// findTank finds Tank's proxies. It returns false if containerd does not use Tank as a snapshotter, because
// then the rest need not be checked.
func (k *checker) findTank() bool {
	if k.in.Content && len(k.enabledProxies("content")) > 0 && k.findProxy("content", "tank-content") == "" {
		k.wrong("", "The content store is the proxy %s and not Tank, which then has none of the blobs",
			k.enabledProxies("content")[0])
	}
	k.differ = k.findProxy("diff", "tank-diff")
	if k.snapshotter = k.findProxy("snapshot", "tank"); k.snapshotter == "" {
		k.wrong("", "No proxy plugin of type snapshot has Tank's address %s: containerd does not use Tank",
			k.in.Address)
		return false
	}
	if k.differ == "" {
		k.wrong("", "No proxy plugin of type diff has Tank's address %s: containerd would unpack layers "+
			"itself, after their download", k.in.Address)
	}
	return true
}

// findProxy returns the name of Tank's proxy of a type: the one with Tank's socket, else the one with the
// usual name, whose address is then wrong. "" if there is neither.
func (k *checker) findProxy(kind, usual string) string {
	names := k.enabledProxies(kind)
	i := slices.IndexFunc(names, func(name string) bool { return k.isTank(k.config.ProxyPlugins[name]) })
	if i >= 0 {
		return names[i]
	}
	if !slices.Contains(names, usual) {
		return ""
	}
	k.wrong(proxySection(usual), "has the address %s; Tank listens on %s", k.config.ProxyPlugins[usual].Address,
		k.in.Address)
	return usual
}

// snapshotProxy checks the capabilities and exports of Tank's snapshotter.
func (k *checker) snapshotProxy() {
	p, at := k.config.ProxyPlugins[k.snapshotter], proxySection(k.snapshotter)
	where := "in directory mode"
	noRemap := "containers with a user namespace do not start if the file system of the root can't be mounted " +
		"with other owners"
	if k.in.UserNS {
		where, noRemap = "inside a user namespace", "their files have the wrong owners"
	}
	for _, c := range []struct{ name, missing, extra string }{
		{rebase, "layers are unpacked one after the other", "files that upper layers delete would come back"},
		{remapIDs, "containers with a user namespace have all their files copied and changed", noRemap},
	} {
		has, announced := slices.Contains(p.Capabilities, c.name), slices.Contains(k.in.capabilities(), c.name)
		switch {
		case has && !announced:
			k.wrong(at, "has the capability %q, which Tank does not announce %s: %s", c.name, where, c.extra)
		case !has && announced:
			k.wrong(at, "lacks the capability %q: %s", c.name, c.missing)
		}
	}
	switch root := p.Exports["root"]; {
	case root == "":
		k.wrong(at, "exports no root: the kubelet looks for the image file system in the wrong place, and "+
			"frees no space")
	case filepath.Clean(root) != k.in.Root:
		k.wrong(at, "exports the root %s, but Tank's is %s: the kubelet looks at the wrong file system", root,
			k.in.Root)
	}
	if v := p.Exports["enable_remote_snapshot_annotations"]; v != "true" {
		k.wrong(at, "exports enable_remote_snapshot_annotations = %q instead of \"true\": Tank does not learn "+
			"which layers follow, and has to guess", v)
	}
}

// disabledCRI returns the first plugin of CRI that is disabled, "" if none is.
func (k *checker) disabledCRI() string {
	for _, plugin := range []string{pluginCRI, pluginImages, pluginRuntime} {
		if k.disabled(plugin) {
			return plugin
		}
	}
	return ""
}
