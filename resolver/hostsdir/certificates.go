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

// CheckCertificates says whether the hosts.toml of somebody else names certificates only beside
// itself: this process shall open no other path for them. errdefs.ErrInvalidArgument when it does
// not, or is no TOML.
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

// Names returns the names for which a resolver that reads this hosts.toml for a registry may ask
// for credentials: the registry's and those of the hosts that the file names. A file that
// containerd's code would refuse names none.
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
		if !strings.HasPrefix(address, "http") { // as containerd reads it
			address = "https://" + address
		}
		if u, err := url.Parse(address); err == nil && u.Host != "" {
			names = append(names, auth.CanonicalHost(u.Host))
		}
	}
	return names
}

// eachCertificate calls f with the path of every certificate and key; in containerd's format these
// are under "ca" and "client".
func eachCertificate(v any, f func(name string) error) error {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			visit := eachCertificate
			if strings.EqualFold(key, "ca") || strings.EqualFold(key, "client") { // as TOML's decoder matches fields
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
