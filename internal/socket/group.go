package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// FindGroup returns the group with a name or number, for sockets of mode 0660. It returns nil for the empty
// name, and errdefs.ErrInvalidArgument for a group that does not exist.
func FindGroup(name string) (*Group, error) {
	if name == "" {
		return nil, nil
	}
	g, err := user.LookupGroup(name)
	if err == nil {
		name = g.Gid
	}
	gid, nerr := strconv.ParseUint(name, 10, 31) // a number needs no name, as for chown
	switch {
	case nerr == nil:
		return &Group{GID: int(gid), Mode: 0o660}, nil
	case err == nil:
		return nil, fmt.Errorf("group %q: id %q: %w: %w", g.Name, g.Gid, nerr, errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("group %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
}

// MakeDir makes the directory of a socket. Every user may search the directory, because the mode of the
// socket decides which users may open the socket. A directory that exists is not changed; if the group can't
// search it or one of its parents, MakeDir logs a warning.
func MakeDir(ctx context.Context, dir string, group *Group) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o711); {
	case err == nil:
		return os.Chmod(dir, 0o711) // the umask may have removed bits
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	for d := dir; group != nil; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if ok && fi.Mode()&0o001 == 0 && (int(st.Gid) != group.GID || fi.Mode()&0o010 == 0) {
			log.G(ctx).WithField("directory", d).Warn("the socket's group can't search this directory")
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	return nil
}
