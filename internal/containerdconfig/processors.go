package containerdconfig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/containerddb"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
)

// builtInProcessors returns the processors that containerd has without any configuration.
func builtInProcessors() map[string]processor.Processor {
	const name, layer = "io.containerd.ocicrypt.decoder.v1", "application/vnd.oci.image.layer.v1"
	all := map[string]processor.Processor{}
	for _, kind := range []struct{ id, suffix string }{{".tar", ".tar"}, {".tar.gzip", ".tar+gzip"}} {
		all[name+kind.id] = processor.Processor{
			Accepts: []string{layer + kind.suffix + "+encrypted"},
			Returns: layer + kind.suffix,
			Path:    "ctd-decoder",
			Args:    []string{"--decryption-keys-path", "/etc/containerd/ocicrypt/keys"},
			Env:     []string{"OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"},
		}
	}
	return all
}

// Sorted returns the processors in the order of their IDs, which are the keys.
func Sorted(all map[string]processor.Processor) (list []processor.Processor) {
	for _, id := range slices.Sorted(maps.Keys(all)) {
		p := all[id]
		p.ID = id
		list = append(list, p)
	}
	return list
}

// processors returns the processors of a config: first those that the config adds or changes, then the
// built-in ones, and last those whose programs are missing. containerd itself runs any processor that accepts
// a media type.
func (c *Config) processors() (list []processor.Processor) {
	var builtIn []processor.Processor
	defaults := builtInProcessors()
	all := maps.Clone(defaults)
	maps.Copy(all, c.StreamProcessors)
	for _, p := range Sorted(all) {
		d := defaults[p.ID]
		if d.ID = p.ID; reflect.DeepEqual(p, d) {
			builtIn = append(builtIn, p)
		} else {
			list = append(list, p)
		}
	}
	list = append(list, builtIn...)
	slices.SortStableFunc(list, func(a, b processor.Processor) int { return missing(a) - missing(b) })
	return list
}

// missing returns 1 if the program of a processor does not exist, else 0.
func missing(p processor.Processor) int {
	if p.Find() != nil {
		return 1
	}
	return 0
}

// ProcessorsOf returns the stream processors of the containerd that runs as process p. Tank runs these
// programs with its own rights. So the process must run as root or as Tank's own user, and no other user may
// be able to write its config. Otherwise, and if the config can't be read, the error is
// errdefs.ErrUnavailable.
func ProcessorsOf(ctx context.Context, p peer.Process) ([]processor.Processor, error) {
	if p.UID != 0 && int(p.UID) != os.Geteuid() {
		return nil, fmt.Errorf("containerd's config: of a process of uid %d: %w", p.UID, errdefs.ErrUnavailable)
	}
	file, err := containerddb.ConfigFile(p)
	if err != nil {
		return nil, fmt.Errorf("containerd's config: %w: %w", err, errdefs.ErrUnavailable)
	}
	return processorsIn(ctx, file)
}

// processorsIn reads the processors of a containerd from its config.
func processorsIn(ctx context.Context, file string) ([]processor.Processor, error) {
	var found findings
	config, ok, err := read(ctx, file, readOwnedFile, &found)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return (&Config{}).processors(), nil
	case err != nil:
		return nil, fmt.Errorf("containerd's config: %w: %w", err, errdefs.ErrUnavailable)
	case !ok:
		reason := strings.TrimSuffix(found[len(found)-1].String(), ".")
		return nil, fmt.Errorf("containerd's config: %s: %w", reason, errdefs.ErrUnavailable)
	}
	return config.processors(), nil
}

// readOwnedFile reads a regular file that only root and this process's user can write.
func readOwnedFile(_ context.Context, name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = owned(info)
	}
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("file %s: more than %d bytes: %w", name, maxFile, errdefs.ErrInvalidArgument)
	}
	return data, err
}

// owned returns an error if users other than root and this process's user can write a file.
func owned(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular():
		return fmt.Errorf("not a regular file: %w", errdefs.ErrInvalidArgument)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("uid %d owns it: %w", st.Uid, errdefs.ErrPermissionDenied)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("other users can write it (mode %04o): %w", info.Mode().Perm(), errdefs.ErrPermissionDenied)
	}
	return nil
}
