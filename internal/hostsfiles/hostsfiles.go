// Package hostsfiles writes the hosts files that a client sends into a root, for the time of one operation.
//
// It owns the directories hosts-* in staging/. Its invariant: no file is written outside of such a directory, and no
// hosts.toml names a certificate outside of it. The surprising rule: a client that sends no files gets the directory
// that it named, unchanged.
package hostsfiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/resolver/hostsdir"
)

// Dir returns a directory with the hosts files of one operation in a root: a new one with the content of files, whose
// keys are paths in it, or dir if there are none. remove deletes the new one.
func Dir(root, dir string, files map[string][]byte) (_ string, remove func(), err error) {
	if len(files) == 0 {
		return dir, func() {}, nil
	}
	staging := filepath.Join(root, "staging")
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
	for name, data := range files {
		if err := write(dir, name, data); err != nil {
			remove()
			return "", nil, fmt.Errorf("hosts file %.100q: %w", name, err)
		}
	}
	return dir, remove, nil
}

func write(dir, name string, data []byte) error {
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
