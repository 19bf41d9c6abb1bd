package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/userfile"
	"github.com/tank-snapshotter/tank/resolver"
	"github.com/tank-snapshotter/tank/resolver/hostsdir"
)

// maxHostsFiles bounds what is sent of a hosts directory, in bytes.
const maxHostsFiles = 4 << 20

// entrust returns the request for a pull and the client's answers to requests for credentials. They have
// only what another process needs to pull for this user: the files of the hosts directory for the
// reference's registry, and credentials for that registry and the hosts that its hosts.toml names.
func entrust(ctx context.Context, ref string, opts *tank.PullOptions) (pullRequest, tank.Credentials, error) {
	req := pullRequest{Ref: ref, PullOptions: *opts}
	parsed, err := resolver.ParseReference(ref)
	if err != nil {
		return req, nil, err
	}
	if opts.HostsDir != "" && len(opts.HostsFiles) == 0 {
		switch _, err := os.Stat(opts.HostsDir); {
		case err == nil:
			req.OwnHosts = true
			if req.HostsFiles, err = readHostsFiles(ctx, opts.HostsDir, parsed.Domain()); err != nil {
				return req, nil, err
			}
		case !errors.Is(err, fs.ErrNotExist):
			return req, nil, hostsError(err)
		}
	}
	return req, limited(opts.Credentials, hostNames(parsed.Domain(), req.HostsFiles)), nil
}

// hostNames returns the hosts that serve a registry: itself, and those that its hosts.toml names.
func hostNames(registry string, files map[string][]byte) []string {
	for name, data := range files {
		if filepath.Base(name) == "hosts.toml" {
			return hostsdir.Names(registry, data)
		}
	}
	return hostsdir.Names(registry, nil)
}

// limited returns credentials for the hosts with these names only; nil for nil.
func limited(credentials tank.Credentials, names []string) tank.Credentials {
	if credentials == nil {
		return nil
	}
	return func(ctx context.Context, host string) (tank.Credential, error) {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, host) }) {
			log.G(ctx).WithField("host", host).
				Warn("no credentials were sent for a host that is not the image's")
			return tank.Credential{}, nil
		}
		return credentials(ctx, host)
	}
}

// hostsError returns the error for a hosts directory that cannot be used. Its exit code is that of a usage
// error, also if a permission is missing.
func hostsError(err error) error {
	err = fmt.Errorf("hosts directory: %w: %w", err, errdefs.ErrInvalidArgument)
	if code, known := cause.Of(err).Exit(); known && code == cause.ExitUsage {
		return err
	}
	return cause.Mark(err, cause.Usage, "")
}

// certificateFiles are the file name extensions of certificates and keys.
var certificateFiles = []string{".crt", ".cert", ".key", ".pem"}

// readHostsFiles reads the files that a hosts directory has for a registry, hosts.toml and certificates, so
// that another process need not open the directory. The keys are paths relative to the directory.
func readHostsFiles(ctx context.Context, dir, registry string) (map[string][]byte, error) {
	fail := func(err error) (map[string][]byte, error) {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, hostsError(err)
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
