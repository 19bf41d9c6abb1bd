package hostsdir

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/resolver/auth"
)

// CheckCertificates checks that the hosts.toml of another user names only certificates and keys in
// its own directory, because this process must not open other paths for that user. Class:
// errdefs.ErrInvalidArgument, also if data is not TOML.
func CheckCertificates(data []byte) error {
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return eachCertificate(doc, func(name string) error {
		if name != "" && !filepath.IsLocal(name) {
			return fmt.Errorf("certificate %.100q: not beside the hosts.toml that names it: %w",
				name, errdefs.ErrInvalidArgument)
		}
		return nil
	})
}

// Names returns the names for which a resolver with this hosts.toml may look up credentials: the
// registry and the hosts in the file. A file that containerd's code would refuse contributes no
// name.
func Names(registry string, hosts []byte) []string {
	names := []string{auth.CanonicalHost(registry)}
	var doc struct {
		Server string         `toml:"server"`
		Hosts  map[string]any `toml:"host"`
	}
	if toml.Unmarshal(hosts, &doc) != nil {
		return names
	}
	for _, address := range append(slices.Sorted(maps.Keys(doc.Hosts)), doc.Server) {
		if !strings.HasPrefix(address, "http") { // as containerd does
			address = "https://" + address
		}
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			names = append(names, auth.CanonicalHost(u.Host))
		}
	}
	return names
}

// eachCertificate calls f with the path of every certificate and key, which containerd's format has
// under "ca" and "client".
func eachCertificate(v any, f func(name string) error) error {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			visit := eachCertificate
			if strings.EqualFold(key, "ca") || strings.EqualFold(key, "client") { // like the TOML decoder
				visit = eachString
			}
			if err := visit(sub, f); err != nil {
				return err
			}
		}
	case []any:
		for _, sub := range v {
			if err := eachCertificate(sub, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func eachString(v any, f func(string) error) error {
	switch v := v.(type) {
	case string:
		return f(v)
	case []any:
		for _, sub := range v {
			if err := eachString(sub, f); err != nil {
				return err
			}
		}
	}
	return nil
}
