// Package staging names what is being made in a directory, and what waits there to be deleted.
//
// It owns the names that begin with a dot in layers/, rootfs/<algorithm>/, snapshots/, blobs/<algorithm>/ and ingest/
// of a root. They lie beside the entries that they become, because a rename needs one file system and one project
// quota.
//
// Its invariant: a name is never used twice, whatever an earlier process left and whatever the clock shows. So a
// process can delete what others left while it makes new entries itself.
//
// The surprising rule: Left skips the names of its own Names, because it may run in the background.
package staging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Names gives out names.
type Names struct {
	token string // of this process and this root; no other has it
	count atomic.Uint64
}

// New returns Names with a random token. It is no secret, so it need not come from crypto/rand, which ends the
// process in a sandbox that does not permit getrandom.
func New() *Names {
	return &Names{token: fmt.Sprintf("%016x", rand.Uint64())}
}

// In returns a path in dir that nothing has. what begins the name, after the dot, for whoever lists the directory.
func (n *Names) In(dir, what string) string {
	return filepath.Join(dir, "."+what+"-"+n.token+"-"+strconv.FormatUint(n.count.Add(1), 36))
}

// Own reports whether In made the name.
func (n *Names) Own(name string) bool { return Is(name) && strings.Contains(name, "-"+n.token+"-") }

// Is reports whether name stands for something unfinished or deleted.
func Is(name string) bool { return strings.HasPrefix(name, ".") }

// Foreign reports whether an entry of a pool is none of Tank's: the lost+found of a file system that is mounted there.
func Foreign(name string) bool { return name == "lost+found" }

// Left lists the paths of what other Names left in dir. It returns no error for a directory that is missing.
func (n *Names) Left(ctx context.Context, dir string) (paths []string, err error) {
	// O_NONBLOCK saves the os package from finding out whether the runtime can wait for a directory.
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
			if Is(name) && !n.Own(name) {
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
