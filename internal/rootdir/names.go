package rootdir

import (
	"path/filepath"

	"github.com/tank-snapshotter/tank/internal/staging"
)

// IsStaged reports whether an entry with this name is being built or waits to be deleted.
func IsStaged(name string) bool { return staging.Is(name) }

// IsLostFound reports whether an entry of a pool is the lost+found of a file system that is mounted there, which is
// none of Tank's.
func IsLostFound(name string) bool { return staging.Foreign(name) }

// Stage returns the path of a staged name in a pool that is not nested, for an entry that is going to be built there.
// what is the beginning of the name.
func (d *Dir) Stage(pool, what string) string { return d.names.In(d.Path(pool), what) }

// StageBeside returns the path of a staged name in the directory of path.
func (d *Dir) StageBeside(path, what string) string { return d.names.In(filepath.Dir(path), what) }
