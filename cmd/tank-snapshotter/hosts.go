package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/userfile"
	"github.com/tank-snapshotter/tank/plugin"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/resolver/hostsdir"
)

// maxHostsFiles bounds what is sent of a hosts directory, in bytes.
const maxHostsFiles = 4 << 20

// entrust adds to a request only what another process needs to pull for this user: the files of the hosts directory for
// the reference's registry, and credentials for that registry and the hosts that its hosts.toml names.
func entrust(ctx context.Context, req *plugin.PullRequest, client *plugin.PullClient, named bool) error {
	ref, err := resolver.ParseReference(req.Ref)
	if err != nil {
		return err
	}
	switch _, err := os.Stat(client.HostsDir); {
	case err == nil:
		req.OwnHosts = true
		if req.HostsFiles, err = readHostsFiles(ctx, client.HostsDir, ref.Domain()); err != nil {
			return err
		}
	case named || !errors.Is(err, fs.ErrNotExist):
		return usageError{fmt.Errorf("--hosts-dir: %w", err)}
	}
	names := hostsdir.Names(ref.Domain(), nil)
	for name, data := range req.HostsFiles {
		if filepath.Base(name) == "hosts.toml" {
			names = hostsdir.Names(ref.Domain(), data)
		}
	}
	ask := client.Credentials
	client.Credentials = func(ctx context.Context, host string) (plugin.Credential, error) {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, host) }) {
			log.G(ctx).WithField("host", host).
				Warn("no credentials were sent for a host that is not the image's")
			return plugin.Credential{}, nil
		}
		return ask(ctx, host)
	}
	return nil
}

// certificateFiles are the file name extensions of certificates and keys.
var certificateFiles = []string{".crt", ".cert", ".key", ".pem"}

// readHostsFiles reads the files that a hosts directory has for a registry, hosts.toml and certificates, so that
// another process need not open the directory. The keys are paths relative to the directory.
func readHostsFiles(ctx context.Context, dir, registry string) (map[string][]byte, error) {
	fail := func(err error) (map[string][]byte, error) {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, usageError{fmt.Errorf("--hosts-dir: %w", err)}
	}
	from, err := hostsdir.Find(dir, registry)
	if err != nil {
		return fail(err)
	}
	if from == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return fail(err)
	}
	files, total := map[string][]byte{}, 0
	for _, e := range entries {
		name := filepath.Join(from, e.Name())
		certificate := !e.IsDir() && slices.Contains(certificateFiles, filepath.Ext(name))
		if e.Name() != "hosts.toml" && !certificate {
			continue
		}
		data, err := userfile.ReadFile(ctx, name, hostsdir.MaxFileSize)
		if err != nil {
			return fail(err)
		}
		if e.Name() == "hosts.toml" {
			if err := hostsdir.Validate(data); err != nil {
				return fail(fmt.Errorf("file %s: %w", printable.Text(name), err))
			}
		}
		if total += len(data); total > maxHostsFiles {
			return fail(fmt.Errorf("%s: more than %d bytes of files", printable.Text(from), maxHostsFiles))
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return fail(err)
		}
		files[rel] = data
	}
	return files, nil
}
