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
	maxHeaderBytes  = 256 << 10 // of one answer, all of its informational answers included
	maxIdleConns    = 16        // per host: more than blobs and ranges at once would open a new one each time
	dialTimeout     = 30 * time.Second
	dialKeepAlive   = 30 * time.Second
	http2PingAfter  = 15 * time.Second // of silence; finds connections that a firewall forgot
	http2PingAnswer = 15 * time.Second
	http2Buffer     = 2 << 20 // of one stream, in memory when we are slower than the network
)

// Endpoint is one host that may serve a registry: a mirror that hosts.toml names, or the registry itself.
type Endpoint struct {
	docker.RegistryHost
	direct   *transportSet // for the host itself; may hold a client certificate
	others   *transportSet // for every other origin; holds none, and does not connect to where nobody should be sent
	tls      *tls.Config
	loopback *atomic.Bool // one of home was found on this machine, and foreign may connect to it; of all hosts of a registry together
	auth     *authorizer
}

// origin is the endpoint as an address without path.
func (e *Endpoint) origin() *url.URL { return &url.URL{Scheme: e.Scheme, Host: e.Host} }

// way is what may talk to u.
func (e *Endpoint) transportsFor(u *url.URL) *transportSet {
	if sameOrigin(u, e.origin()) {
		return e.direct
	}
	return e.others
}

// endpoints reads the hosts of a registry by the rules of containerd's hosts.toml.
func (c *Client) endpoints(ctx context.Context, name string) (all []*Endpoint, err error) {
	var local atomic.Bool
	plain := map[*http.Client]*http.Transport{} // what may later hide inside a fallback to HTTP
	opts := config.HostOptions{
		UpdateClient: func(h *http.Client) error {
			if t, ok := h.Transport.(*http.Transport); ok {
				c.tune(t, &local)
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
			c.tune(t, &local)
		}
		e := &Endpoint{RegistryHost: h, direct: newTransportSet(h.Client.Transport, t), tls: t.TLSClientConfig, loopback: &local}
		foreign := checkedTransport(t, e.origin(), &local)
		e.others = newTransportSet(foreign, foreign)
		e.auth = &authorizer{endpoint: e, client: c, credentials: c.credentials}
		all = append(all, e)
	}
	c.connections.share(c.connectionsKey(name, files.TOML), all)
	return all, nil
}

// hostsError is the error for files of a hosts directory that cannot be used; err names the file.
func hostsError(registry string, err error) error {
	if !errdefs.IsInvalidArgument(err) {
		err = fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument) // no class of a file's
	}
	return cause.Mark(fmt.Errorf("hosts of %s: %w", registry, err), cause.Configuration, "")
}

// tune sets what containerd's transport leaves open. It may be called twice for one transport.
func (c *Client) tune(t *http.Transport, local *atomic.Bool) {
	t.ForceAttemptHTTP2 = true // containerd's own dialer turns it off
	t.DisableCompression = true
	t.MaxResponseHeaderBytes = maxHeaderBytes
	t.ResponseHeaderTimeout = c.opts.StallTimeout
	t.TLSHandshakeTimeout = min(10*time.Second, c.opts.StallTimeout)
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = 4*maxIdleConns, maxIdleConns, idleConnTimeout
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: http2PingAfter, PingTimeout: http2PingAnswer, MaxReceiveBufferPerStream: http2Buffer}
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
				local.Store(true)
			}
		}
		return conn, err
	}
}

// foreignTransport is t for other origins than home. A registry names these, in redirects and as token servers, so it must not use us to
// reach what only we can reach: addresses are checked when they are dialled, after the name was resolved.
func checkedTransport(t *http.Transport, home *url.URL, local *atomic.Bool) *http.Transport {
	f := t.Clone()
	if f.TLSClientConfig != nil {
		f.TLSClientConfig.Certificates, f.TLSClientConfig.GetClientCertificate = nil, nil
	}
	var proxies sync.Map // what the environment configured is not the registry's choice
	if proxy := f.Proxy; proxy != nil {
		f.Proxy = func(req *http.Request) (*url.URL, error) {
			u, err := proxy(req)
			if u != nil {
				proxies.Store(net.JoinHostPort(u.Hostname(), port(u)), true)
			}
			return u, err
		}
	}
	own, _ := netip.ParseAddr(home.Hostname())
	free := net.Dialer{Timeout: dialTimeout, KeepAlive: dialKeepAlive}
	checked := free
	checked.Control = func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if ap.Addr().Unmap() == own.Unmap() {
			return nil
		}
		return checkAddress(ap.Addr(), local.Load())
	}
	f.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, ok := proxies.Load(addr); ok {
			return free.DialContext(ctx, network, addr)
		}
		return checked.DialContext(ctx, network, addr)
	}
	return f
}

// metadataServers give credentials of the machine to whoever asks, and are not link-local.
var metadataServers = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("100.100.100.200"), // Alibaba Cloud
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle Cloud
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// refusedAddress is the reason of a connection that was not made. Another try would not be made either.
func refusedAddress(a netip.Addr) error {
	return retry.Permanent(fmt.Errorf("address %s: a registry may not lead there", a))
}

// checkAddress refuses where no registry on another machine may send us. local says that the registry is on this machine, which may.
func checkAddress(a netip.Addr, local bool) error {
	a = a.Unmap().WithZone("")
	if b := a.As16(); nat64.Contains(a) {
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	if a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsLoopback() && !local {
		return refusedAddress(a)
	}
	for _, m := range metadataServers {
		if a == m {
			return refusedAddress(a)
		}
	}
	return nil
}

// isLoopback says whether a registry name is this machine's own, so that HTTP is no risk.
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
