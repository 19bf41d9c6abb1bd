package snapshot

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// CheckOverlay returns errdefs.ErrFailedPrecondition if the file system of layers/ or snapshots/ lacks the extended
// attributes with which overlay marks directories. It checks nothing in directory mode and for a store that only reads.
func (s *Store) CheckOverlay() error {
	if s.opts.Directory || s.opts.ReadOnly {
		return nil
	}
	prefix := entry.TrustedOverlay
	if s.opts.UserXattr {
		prefix = entry.UserOverlay
	}
	for _, pool := range []string{"layers", "snapshots"} {
		// Reading an attribute is enough, and works on a full disk. Only EOPNOTSUPP proves that there are none.
		_, err := unix.Getxattr(s.path(pool), prefix+entry.OpaqueAttr, nil)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("root %s: the file system of %s has no extended attributes, which overlay needs: "+
				"set mode = \"directory\" in the config, or use another file system: %w", s.root, pool,
				errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
