package tank

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/resolver/hostsdir"
)

// hostsDir returns the hosts directory for a pull. remove deletes it if it was made for the pull.
func (t *Tank) hostsDir(opts *PullOptions) (dir string, remove func(), err error) {
	if len(opts.HostsFiles) == 0 {
		return opts.HostsDir, func() {}, nil
	}
	staging := filepath.Join(t.root, "staging")
	if err := os.Mkdir(staging, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(staging, "hosts-"); err != nil {
		return "", nil, err
	}
	remove = func() {
		if err := os.RemoveAll(dir); err != nil {
			log.L.WithError(err).Warn("hosts files remain in staging")
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
		if err := hostsdir.CheckCertificates(data); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
