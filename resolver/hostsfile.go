package resolver

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// CheckHosts says whether the hosts.toml of somebody else names certificates only beside itself: this process shall open
// no other path for them. errdefs.ErrInvalidArgument when it does not, or is no TOML.
func CheckHosts(data []byte) error {
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return localPaths(doc)
}

// localPaths refuses certificates, of which containerd's format knows "ca" and "client", that lie elsewhere.
func localPaths(v any) error {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			check := localPaths
			if strings.EqualFold(key, "ca") || strings.EqualFold(key, "client") { // as TOML's decoder matches fields
				check = localPath
			}
			if err := check(sub); err != nil {
				return err
			}
		}
	case []any:
		for _, sub := range v {
			if err := localPaths(sub); err != nil {
				return err
			}
		}
	}
	return nil
}

func localPath(v any) error {
	switch v := v.(type) {
	case string:
		if v != "" && !filepath.IsLocal(v) {
			return fmt.Errorf("certificate %.100q: not beside the hosts.toml that names it: %w", v, errdefs.ErrInvalidArgument)
		}
	case []any:
		for _, sub := range v {
			if err := localPath(sub); err != nil {
				return err
			}
		}
	}
	return nil
}
