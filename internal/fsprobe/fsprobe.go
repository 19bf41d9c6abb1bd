// Package fsprobe tries on a file system what Tank needs from it, before Tank relies on it.
//
// It owns nothing on disk that lasts: a directory whose name begins with Prefix exists while Try
// runs. If the process is killed meanwhile, the directory stays until Sweep deletes it.
//
// Its invariant: Try returns an error only for what the file system itself does not do. If it cannot
// find out, because the disk is full or descriptors are short, it returns nil, and the work that
// follows reports that error.
//
// The surprising rule: a call that succeeds proves nothing. Network file systems and FUSE servers
// accept modes, owners, renames and locks without carrying them out, so Try reads the result back.
package fsprobe

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// Prefix begins the name of the directory in which Try works.
const Prefix = ".probe-"

// Needs are needs that not every root has.
type Needs struct {
	// Overlay has overlay mounts use the file system: it must have whiteouts, opaque directories and
	// what the kernel asks of an upper directory. false: nothing is mounted.
	Overlay bool
	// Sync also tries to write a file and its directory out, which takes the disk a moment. false:
	// that is not tried.
	Sync bool
}

// Try tries in the directory dir what Tank needs, and removes what it made. It returns
// errdefs.ErrFailedPrecondition, with what is missing, if the file system lacks something.
func Try(dir string, needs Needs) error {
	path := filepath.Join(dir, fmt.Sprintf("%s%016x", Prefix, rand.Uint64()))
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil // whoever makes the next directory reports it
	}
	p := &probe{path: path}
	defer func() { _ = os.RemoveAll(path) }() // Sweep deletes what is left
	for _, need := range needed {
		if !needs.Overlay && need.overlay || !needs.Sync && need.sync {
			continue
		}
		if err := need.try(p); err != nil {
			if unknown(err) {
				return nil // the needs that follow use what this one should have made
			}
			if _, gone := stat(path); gone != nil {
				return nil // another process owns the root by now, and swept
			}
			kind := cause.Unfit
			if need.overlay {
				kind = cause.FileSystem
			}
			return cause.Mark(fmt.Errorf("its file system (%s) lacks what Tank needs: %s: %w: %w",
				typeOf(dir), need.name, err, errdefs.ErrFailedPrecondition), kind, "")
		}
	}
	return nil
}

// Sweep deletes the directories that Try left in dir when its process was killed. Only the owner of a root may
// call it. A Try of another process that runs there at the same time returns nil.
func Sweep(dir string) {
	entries, _ := os.ReadDir(dir) // a directory that cannot be read has its error elsewhere
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Prefix) {
			_ = os.RemoveAll(filepath.Join(dir, e.Name())) // tried again by the next opening
		}
	}
}

// unknown reports whether an error says nothing about what the file system can do.
func unknown(err error) bool {
	for _, errno := range []unix.Errno{
		unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// types are the names of file systems that people put roots on, by the magic number of statfs.
var types = map[int64]string{
	unix.V9FS_MAGIC: "9p", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.CEPH_SUPER_MAGIC: "ceph",
	unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "cifs", unix.EXFAT_SUPER_MAGIC: "exfat",
	unix.EXT4_SUPER_MAGIC: "ext4",
	unix.F2FS_SUPER_MAGIC: "f2fs", unix.FUSE_SUPER_MAGIC: "fuse", unix.MSDOS_SUPER_MAGIC: "vfat",
	unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.RAMFS_MAGIC: "ramfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.XFS_SUPER_MAGIC: "xfs",
}

func typeOf(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown"
	}
	if name, ok := types[int64(st.Type)]; ok { //nolint:unconvert // its size depends on the architecture
		return name
	}
	return fmt.Sprintf("type %#x", st.Type)
}
