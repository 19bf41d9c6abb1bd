package rootdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
)

// names gives out staged names. It gives out none that an earlier process or another Dir has used,
// whatever the clock shows. So a process can delete what others left while it makes new entries.
type names struct {
	token string // of this Dir; no other Dir of any process has it
	count atomic.Uint64
}

// newNames makes a random token. It is no secret, so it need not come from crypto/rand, which ends
// the process in a sandbox that does not permit getrandom.
func newNames() *names {
	return &names{token: fmt.Sprintf("%016x", rand.Uint64())}
}

// pathIn returns the path of a new staged name in dir. The name begins with a dot and what, for
// people who list the directory.
func (n *names) pathIn(dir, what string) string {
	return filepath.Join(dir, "."+what+"-"+n.token+"-"+strconv.FormatUint(n.count.Add(1), 36))
}

// made reports whether pathIn made the name.
func (n *names) made(name string) bool {
	return IsStaged(name) && strings.Contains(name, "-"+n.token+"-")
}

// IsStaged reports whether an entry with this name is being built or waits to be deleted.
func IsStaged(name string) bool { return strings.HasPrefix(name, ".") }

// IsLostFound reports whether an entry of a pool is the directory lost+found of a file system that is
// mounted there. Tank leaves it alone.
func IsLostFound(name string) bool { return name == "lost+found" }

// Stage returns the path of a staged name in a pool that is not nested, for an entry that is going
// to be built there. what is the beginning of the name.
func (d *Dir) Stage(pool, what string) string { return d.names.pathIn(d.Path(pool), what) }

// StageBeside returns the path of a staged name in the directory of path.
func (d *Dir) StageBeside(path, what string) string { return d.names.pathIn(filepath.Dir(path), what) }

// MakeParent makes the directory in which a nested pool has the entry path, unless it exists.
func (d *Dir) MakeParent(path string) error {
	err := d.fs.Mkdir(filepath.Dir(path), 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// Build makes the directory path, which has a staged name. It calls fill, which makes the entries of
// the directory, and then sync, which forces them to the disk. sync is nil if a later Sync or Place
// makes the directory durable. Build is one operation of fsys.FS, however many files fill makes.
// After an error the caller deletes what remains.
func (d *Dir) Build(path string, fill, sync func() error) error {
	return d.fs.Build(path, func() error {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		return fill()
	}, sync)
}

// MoveStaged renames an entry that has no record, or a part of what is being built, to a path with a
// staged name or below one. Only Place gives an entry its position: for any other path,
// MoveStaged returns errdefs.ErrInvalidArgument.
func (d *Dir) MoveStaged(from, to string) error {
	below, err := filepath.Rel(d.root, to)
	if err != nil || below == "." || !filepath.IsLocal(below) ||
		!slices.ContainsFunc(strings.Split(below, "/"), IsStaged) {
		return fmt.Errorf("move to %s: not a staged name: %w", to, errdefs.ErrInvalidArgument)
	}
	return d.fs.Rename(from, to)
}

// left lists the paths of the staged names in dir that another process or another Dir made. It
// returns no error if dir is missing.
func (n *names) left(ctx context.Context, dir string) (paths []string, err error) {
	// O_NONBLOCK saves the os package from finding out whether the runtime can wait for a
	// directory.
	d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	for ctx.Err() == nil {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if IsStaged(name) && !n.made(name) {
				paths = append(paths, filepath.Join(dir, name))
			}
		}
		if errors.Is(err, io.EOF) {
			return paths, nil
		}
		if err != nil {
			return paths, err
		}
	}
	return paths, ctx.Err()
}
