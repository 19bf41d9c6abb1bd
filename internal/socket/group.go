package main

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

	"github.com/containerd/log"
)

// noGroup is the group of a socket that only its user may open.
const noGroup = -1

// groupID finds a group by name or number; noGroup for none. The error is one of usage.
func groupID(name string) (int, error) {
	if name == "" {
		return noGroup, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		// A number needs no name, as for chown.
		n, nerr := strconv.ParseUint(name, 10, 31)
		if nerr != nil {
			return noGroup, usageError{fmt.Errorf("group %q: %w", name, err)}
		}
		return int(n), nil
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return noGroup, usageError{fmt.Errorf("group %q: id %q: %w", name, g.Gid, err)}
	}
	return n, nil
}

// socketDir makes the directory of a daemon's socket. Anybody may walk through it: the socket's own mode says who may open that. One that is
// there is left as it is.
func socketDir(ctx context.Context, dir string, gid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o711); {
	case err == nil:
		return os.Chmod(dir, 0o711) // whatever the umask
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	for d := dir; gid != noGroup; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode()&0o001 == 0 && (int(st.Gid) != gid || fi.Mode()&0o010 == 0) {
			log.G(ctx).WithField("directory", d).Warn("the socket's group can't get through its directory")
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	return nil
}
