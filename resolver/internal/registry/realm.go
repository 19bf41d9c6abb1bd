package registry

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// realmURL reads the address of a token server that a registry at home named. It refuses what nobody would mean: another scheme than HTTP, HTTP
// for a registry that has HTTPS, an address with a user in it. Where it leads is checked when it is dialled. A registry
// behind a gateway that ends TLS may name its own host with HTTP; that is read as HTTPS.
func realmURL(home *url.URL, realm string) (*url.URL, error) {
	if realm == "" {
		return nil, errors.New("challenge without realm")
	}
	u, err := url.Parse(realm)
	if err != nil {
		return nil, errors.New("realm is not a URL") // the parser's words quote it
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "" || u.Hostname() == "":
		return nil, errors.New("realm is not an address of HTTP")
	case u.User != nil:
		return nil, errors.New("realm names a user")
	}
	if home.Scheme == "https" && u.Scheme == "http" && sameHost(home, u) {
		u.Scheme, u.Host = "https", home.Host // the registry does not know that TLS ends before it
	}
	if home.Scheme == "https" && u.Scheme != "https" {
		return nil, fmt.Errorf("realm at %s is not HTTPS, but the registry is", u.Host)
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && u.Hostname() != home.Hostname() {
		// Early, so that a proxy is not asked to go there either. A registry's name says nothing about the loopback; the dialler knows.
		if err := checkAddress(a, true); err != nil {
			return nil, err
		}
	}
	u.Fragment = ""
	return u, nil
}

// sameHost reports whether a realm without TLS is on the host of the registry, on the port of HTTP or of the registry.
func sameHost(home, realm *url.URL) bool {
	return strings.EqualFold(home.Hostname(), realm.Hostname()) && (port(realm) == "80" || port(realm) == port(home))
}

// realmPairs are registries whose token server is on another site, as their operators document it.
var realmPairs = map[string]string{
	"docker.io":            "auth.docker.io",
	"registry-1.docker.io": "auth.docker.io",
}

// trusted says whether a token server may get the user's credentials for a registry: it is the same host and port, a pair that is known or
// configured, or a host of the same site, which is the registrable domain as browsers know it. Names without such a domain, and
// addresses, have to be equal.
func trusted(home, realm *url.URL, configured []string) bool {
	if sameOrigin(home, realm) || strings.EqualFold(home.Host, realm.Host) && realm.Scheme == "https" {
		return true
	}
	if realmPairs[strings.ToLower(home.Host)] == strings.ToLower(realm.Host) {
		return true
	}
	for _, host := range configured {
		if strings.EqualFold(host, realm.Host) {
			return true
		}
	}
	return sameSite(home.Hostname(), realm.Hostname())
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
