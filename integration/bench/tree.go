package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// treeOf returns the number of entries below dir, and a hash of their paths, types, modes, owners, sizes, link counts,
// times (in seconds) and symlink targets. The sizes, link counts and times of directories are left out.
func treeOf(dir string) (string, error) {
	h := sha256.New()
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // overlayfs lists this whiteout but does not find it
			fmt.Fprintf(h, "%s is not there\n", path[len(dir):])
			return nil
		}
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		size, links, time, target := st.Size, uint64(st.Nlink), st.Mtim.Sec, ""
		switch fi.Mode().Type() {
		case fs.ModeDir:
			size, links, time = 0, 0, 0 // contenders differ in the times of directories
		case fs.ModeSymlink:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		n++
		fmt.Fprintf(h, "%s %o %d:%d %d %d %d %q\n", path[len(dir):], st.Mode, st.Uid, st.Gid, size, links, time, target)
		return nil
	})
	return fmt.Sprintf("%d entries, %x", n, h.Sum(nil)[:8]), err
}
