package tank

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
)

// hostsDir returns the directory of hosts files for a pull, and what removes it again if it was made for the pull.
func (t *Tank) hostsDir(opts *PullOptions) (dir string, remove func(), err error) {
	if len(opts.HostsFiles) == 0 {
		return opts.HostsDir, func() {}, nil
	}
	if dir, err = os.MkdirTemp(filepath.Join(t.root, "staging"), "hosts-"); err != nil {
		return "", nil, err
	}
	remove = func() {
		if err := os.RemoveAll(dir); err != nil {
			log.L.WithError(err).Warn("hosts files are left in staging")
		}
	}
	for name, data := range opts.HostsFiles {
		if err := writeHostsFile(dir, name, data); err != nil {
			remove()
			return "", nil, fmt.Errorf("hosts file %.100q: %w", name, err)
		}
	}
	return dir, remove, nil
}

func writeHostsFile(dir, name string, data []byte) error {
	if !filepath.IsLocal(name) {
		return fmt.Errorf("not a path below the hosts directory: %w", errdefs.ErrInvalidArgument)
	}
	if filepath.Base(name) == "hosts.toml" {
		var doc map[string]any
		if err := toml.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := localPaths(doc); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// localPaths refuses certificates, of which containerd's format knows "ca" and "client", that lie elsewhere.
func localPaths(v any) error {
	switch v := v.(type) {
	case map[string]any:
		for key, sub := range v {
			check := localPaths
			if key == "ca" || key == "client" {
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
