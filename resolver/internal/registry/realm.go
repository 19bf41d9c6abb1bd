package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// realmURL parses the URL of a token server that the challenge of a registry names. It refuses a
// scheme other than HTTP and HTTPS, HTTP for a registry that uses HTTPS, and a URL with a user. The
// address is checked when it is dialed. A registry behind a gateway that terminates TLS may name
// its own host with HTTP; realmURL turns this into HTTPS.
func realmURL(registry *url.URL, realm string) (*url.URL, error) {
	if realm == "" {
		return nil, errors.New("challenge without realm")
	}
	u, err := url.Parse(realm)
	if err != nil {
		return nil, errors.New("realm is not a URL") // the parser's error would quote it
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("realm is not an HTTP URL")
	case u.User != nil:
		return nil, errors.New("realm contains a user")
	}
	if registry.Scheme == "https" && u.Scheme == "http" && sameHost(registry, u) {
		u.Scheme, u.Host = "https", registry.Host
	}
	if registry.Scheme == "https" && u.Scheme != "https" {
		return nil, fmt.Errorf("realm at %s uses HTTP, but the registry uses HTTPS", u.Host)
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && u.Hostname() != registry.Hostname() {
		// Before the request, because a proxy would dial without this check. Whether the registry
		// is on this machine is not known yet, so a loopback address is allowed here; the dialer
		// checks it.
		if err := checkAddress(a, true); err != nil {
			return nil, err
		}
	}
	u.Fragment = ""
	return u, nil
}

// sameHost reports whether a realm with HTTP is on the host of the registry, at port 80 or at the
// port of the registry.
func sameHost(registry, realm *url.URL) bool {
	return strings.EqualFold(registry.Hostname(), realm.Hostname()) &&
		(port(realm) == "80" || port(realm) == port(registry))
}

// realmPairs are registries with token servers on other sites, as their operators document.
var realmPairs = map[string]string{
	"docker.io":            "auth.docker.io",
	"registry-1.docker.io": "auth.docker.io",
}

// trusted reports whether a token server may receive the credentials for a registry: if it has the
// same host and port, if the pair is known or configured, or if both are hosts of the same site. A
// site is a registrable domain, as browsers determine it; names without such a domain, and
// addresses, must be equal.
func trusted(registry, realm *url.URL, configured []string) bool {
	if sameOrigin(registry, realm) || strings.EqualFold(registry.Host, realm.Host) && realm.Scheme == "https" {
		return true
	}
	if realmPairs[strings.ToLower(registry.Host)] == strings.ToLower(realm.Host) {
		return true
	}
	for _, host := range configured {
		if strings.EqualFold(host, realm.Host) {
			return true
		}
	}
	return sameSite(registry.Hostname(), realm.Hostname())
}

func sameSite(a, b string) bool {
	a, b = strings.ToLower(strings.TrimSuffix(a, ".")), strings.ToLower(strings.TrimSuffix(b, "."))
	if _, err := netip.ParseAddr(a); err == nil {
		return false
	}
	if _, err := netip.ParseAddr(b); err == nil {
		return false
	}
	siteA, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil {
		return false
	}
	siteB, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && siteA == siteB
}
