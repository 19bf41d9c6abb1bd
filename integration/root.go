package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Leftovers lists the content of those directories of a root that are empty if nothing is kept.
func (k *TankRoot) Leftovers() []string {
	var left []string
	for _, d := range []string{"blobs/sha256", "ingest", "layers", "rootfs/sha256", "snapshots", "staging"} {
		entries, err := os.ReadDir(filepath.Join(k.Root, d))
		if err != nil && !os.IsNotExist(err) {
			left = append(left, fmt.Sprintf("%s: %v", d, err))
		}
		for _, e := range entries {
			left = append(left, d+"/"+e.Name())
		}
	}
	return left
}

// LayerInodes gives the inode number of each directory and file in layers/, by its path there.
func (k *TankRoot) LayerInodes(t testing.TB) map[string]uint64 {
	t.Helper()
	base := filepath.Join(k.Root, "layers")
	inodes := map[string]uint64{}
	err := filepath.WalkDir(base, func(p string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(base, p)
		switch { // what is staged may vanish at any moment
		case staged(rel) && e.IsDir():
			return fs.SkipDir
		case staged(rel):
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		inodes[rel] = st.Ino
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return inodes
}

// staged reports whether a path that is relative to a pool is a name for something that is built or
// deleted, or lies below one.
func staged(rel string) bool { return len(rel) > 1 && rel[0] == '.' }

// unpackBegan reports whether the layer is being unpacked: layers/.layer-<12 digits of the diff ID>-<n>/fs exists
// and, if withFile is set, is not empty.
func (k *TankRoot) unpackBegan(diffID digest.Digest, withFile bool) bool {
	dirs, _ := filepath.Glob(filepath.Join(k.Root, "layers", ".*"+diffID.Encoded()[:12]+"*", "fs"))
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err == nil && (!withFile || len(entries) > 0) {
			return true
		}
	}
	return false
}

// watchStaging returns a function that lists which names appeared in layers/ since, where layers are unpacked.
func (k *TankRoot) watchStaging(t testing.TB) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(k.Root, "layers"),
		unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		var names []string
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				sort.Strings(names)
				return names
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				size := int(buf[at+12]) | int(buf[at+13])<<8 // inotify_event.len, after wd, mask and cookie
				name := buf[at+unix.SizeofInotifyEvent : at+unix.SizeofInotifyEvent+size]
				names = append(names, strings.TrimRight(string(name), "\x00"))
				at += unix.SizeofInotifyEvent + size
			}
		}
	}
}

// unpackedAmong picks those names in layers/ that are unpacks of the image's layers.
func unpackedAmong(names []string, img Image) []string {
	var found []string
	for _, n := range names {
		for _, d := range img.DiffIDs {
			if strings.Contains(n, d.Encoded()[:12]) {
				found = append(found, n)
			}
		}
	}
	return found
}
