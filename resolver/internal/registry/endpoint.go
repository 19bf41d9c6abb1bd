package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/hostsdir"
	"github.com/tank-snapshotter/tank/resolver/internal/retry"
)

// Limits on a connection.
const (
	maxHeaderBytes  = 256 << 10 // of one answer, including its informational answers
	maxIdleConns    = 16        // per host; with fewer, parallel downloads would keep opening new ones
	dialTimeout     = 30 * time.Second
	dialKeepAlive   = 30 * time.Second
	http2PingAfter  = 15 * time.Second // without a frame; detects connections that a firewall has dropped
	http2PingAnswer = 15 * time.Second
	http2Buffer     = 2 << 20 // bytes of one stream that are buffered when the network is faster than this process
)

// Endpoint is one host that may serve a registry: a mirror that hosts.toml names, or the registry
// itself.
type Endpoint struct {
	docker.RegistryHost
	direct *transportSet // to the host itself; may have a client certificate
	others *transportSet // to other origins; has no client certificate, and refuses some addresses
	tls    *tls.Config
	// loopback is set when a direct connection has reached a loopback address. The registry is then
	// on this machine, and others may connect to loopback addresses. All hosts of a registry share
	// it.
	loopback *atomic.Bool
	auth     *authorizer
}

// origin returns the URL of the host without a path.
func (e *Endpoint) origin() *url.URL { return &url.URL{Scheme: e.Scheme, Host: e.Host} }

// transportsFor returns the transports for requests to u.
func (e *Endpoint) transportsFor(u *url.URL) *transportSet {
	if sameOrigin(u, e.origin()) {
		return e.direct
	}
	return e.others
}

// endpoints returns the hosts of a registry, by the rules of containerd's hosts.toml.
func (c *Client) endpoints(ctx context.Context, name string) (all []*Endpoint, err error) {
	var loopback atomic.Bool
	plain := map[*http.Client]*http.Transport{} // because containerd may wrap them in a fallback to HTTP
	opts := config.HostOptions{
		UpdateClient: func(h *http.Client) error {
			if t, ok := h.Transport.(*http.Transport); ok {
				c.tune(t, &loopback)
				plain[h] = t
			}
			return nil
		},
	}
	files, err := hostsdir.Read(ctx, c.opts.HostsDir, name)
	defer func() {
		if e := files.Remove(); err == nil && e != nil {
			err = fmt.Errorf("hosts of %s: %w", name, e)
		}
	}()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, hostsError(name, err)
	}
	if files.Dir != "" {
		opts.HostDir = func(string) (string, error) { return files.Dir, nil }
	}
	if c.opts.PlainHTTP || isLoopback(name) {
		opts.DefaultScheme = "http"
	}
	hosts, err := config.ConfigureHosts(ctx, opts)(name)
	if err != nil {
		return nil, hostsError(name, err)
	}
	for _, h := range hosts {
		t := plain[h.Client]
		if t == nil {
			t = docker.DefaultHTTPTransport(&tls.Config{})
			c.tune(t, &loopback)
		}
		e := &Endpoint{
			RegistryHost: h, direct: newTransportSet(h.Client.Transport, t),
			tls: t.TLSClientConfig, loopback: &loopback,
		}
		checked := checkedTransport(t, e.origin(), &loopback)
		e.others = newTransportSet(checked, checked)
		e.auth = &authorizer{endpoint: e, client: c, credentials: c.credentials}
		all = append(all, e)
	}
	c.connections.share(c.connectionsKey(name, files.TOML), all)
	return all, nil
}

// hostsError is the error for a hosts.toml or certificate that cannot be used; err names the file.
func hostsError(registry string, err error) error {
	if !errdefs.IsInvalidArgument(err) {
		err = fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument) // instead of the class of a file error
	}
	return cause.Mark(fmt.Errorf("hosts of %s: %w", registry, err), cause.Configuration, "")
}

// tune sets the fields of a transport that containerd leaves at their zero values.
func (c *Client) tune(t *http.Transport, loopback *atomic.Bool) {
	t.ForceAttemptHTTP2 = true // a transport with its own dialer does not attempt it by default
	t.DisableCompression = true
	t.MaxResponseHeaderBytes = maxHeaderBytes
	t.ResponseHeaderTimeout = c.opts.StallTimeout
	t.TLSHandshakeTimeout = min(10*time.Second, c.opts.StallTimeout)
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = 4*maxIdleConns, maxIdleConns, idleConnTimeout
	t.HTTP2 = &http.HTTP2Config{
		SendPingTimeout: http2PingAfter, PingTimeout: http2PingAnswer, MaxReceiveBufferPerStream: http2Buffer,
	}
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
				loopback.Store(true)
			}
		}
		return conn, err
	}
}

// checkedTransport returns a copy of t for origins other than that of the registry. The registry
// chooses these origins, in redirects and as token servers, and must not use this process to reach
// hosts that only this machine can reach. The transport therefore checks each address when it dials
// it, after the name was resolved.
func checkedTransport(t *http.Transport, registry *url.URL, loopback *atomic.Bool) *http.Transport {
	f := t.Clone()
	if f.TLSClientConfig != nil {
		f.TLSClientConfig.Certificates, f.TLSClientConfig.GetClientCertificate = nil, nil
	}
	var proxies sync.Map // addresses of proxies: the environment chooses them, not the registry
	if proxy := f.Proxy; proxy != nil {
		f.Proxy = func(req *http.Request) (*url.URL, error) {
			u, err := proxy(req)
			if u != nil {
				proxies.Store(net.JoinHostPort(u.Hostname(), port(u)), true)
			}
			return u, err
		}
	}
	known, _ := netip.ParseAddr(registry.Hostname())
	unchecked := net.Dialer{Timeout: dialTimeout, KeepAlive: dialKeepAlive}
	checked := unchecked
	checked.Control = func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if ap.Addr().Unmap() == known.Unmap() {
			return nil
		}
		return checkAddress(ap.Addr(), loopback.Load())
	}
	f.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, ok := proxies.Load(addr); ok {
			return unchecked.DialContext(ctx, network, addr)
		}
		return checked.DialContext(ctx, network, addr)
	}
	return f
}

// metadataServers give the machine's credentials to every process that asks. Those with link-local
// addresses are not listed.
var metadataServers = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// refusedAddress is the error for an address to which no connection is made.
func refusedAddress(a netip.Addr) error {
	return retry.Permanent(fmt.Errorf("address %s: a registry must not lead to it", a))
}

// checkAddress refuses an address to which a registry must not lead. Only a registry on this
// machine may lead to a loopback address.
func checkAddress(a netip.Addr, loopback bool) error {
	a = a.Unmap().WithZone("")
	if b := a.As16(); nat64.Contains(a) {
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsLoopback() && !loopback {
		return refusedAddress(a)
	}
	for _, m := range metadataServers {
		if a == m {
			return refusedAddress(a)
		}
	}
	return nil
}

// isLoopback reports whether the name of a registry is a loopback name or address. HTTP to such a
// registry does not leave the machine.
func isLoopback(name string) bool {
	host := name
	if h, _, err := net.SplitHostPort(name); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}
