package crashstate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// State is what a power cut left of a root.
type State struct {
	rng     *rand.Rand
	at      int // the position of the power cut
	root    *inode
	names   map[*inode]map[string]*inode
	attrs   map[*inode]*attrs
	changes map[*inode][]*effect // of the bytes of files, those that began
	damage  float64              // the share of files with bytes that were not synced that lose some of them
}

// State chooses a legal state after a power cut at a position: after the steps before it, while the
// step with that number is under way. What is left open by the history is decided by rng.
//
// Half of the states keep changes of names and attributes in the order in which they were made, up
// to a moment, as the journals of ext4 and XFS do. In the others each change is kept or lost on its
// own, unless a later change of the same name or the same inode is kept.
func (r *Recorder) State(rng *rand.Rand, at int) *State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &State{
		rng: rng, at: at, root: r.root,
		names: map[*inode]map[string]*inode{}, attrs: map[*inode]*attrs{}, changes: map[*inode][]*effect{},
		damage: float64(rng.IntN(5)) / 4,
	}
	kept := s.choose(r.effects)
	for i, e := range r.effects {
		if !kept[i] {
			continue
		}
		for _, n := range e.names {
			if s.names[n.dir] == nil {
				s.names[n.dir] = map[string]*inode{}
			}
			s.names[n.dir][n.name] = n.inode
		}
		if e.attrs != nil {
			s.attrs[e.inode] = e.attrs
		} else if e.inode != nil {
			s.changes[e.inode] = append(s.changes[e.inode], e)
		}
	}
	return s
}

// choose decides which effects the state has. Those on the bytes of files are all chosen if they
// began: how much of them is there is decided for each file.
func (s *State) choose(effects []*effect) []bool {
	kept := make([]bool, len(effects))
	barrier := 0 // what was forced to the disk, and with a journal everything before it
	for _, e := range effects {
		if e.synced < s.at {
			barrier = max(barrier, e.synced)
		}
	}
	begun := func(e *effect) bool {
		switch {
		case e.to < s.at:
			return true
		case e.from > s.at:
			return false
		}
		return s.rng.IntN(2) == 0 // under way
	}
	ordered := s.rng.IntN(2) == 0
	moment := barrier + s.rng.IntN(max(1, s.at-barrier+1))
	share := float64(s.rng.IntN(5)) / 4
	for i, e := range effects {
		switch {
		case e.synced < s.at:
			kept[i] = true
		case !begun(e):
		case e.inode != nil && e.attrs == nil:
			kept[i] = true
		case ordered:
			kept[i] = e.to < moment
		default:
			kept[i] = s.rng.Float64() < share
		}
	}
	for i := len(effects) - 1; i >= 0; i-- {
		if kept[i] {
			for _, before := range effects[i].after {
				kept[before] = true
			}
		}
	}
	return kept
}

// apply returns the bytes of a file after an effect.
func (e *effect) apply(data []byte) []byte {
	if e.size >= 0 {
		return resized(data, int(e.size))
	}
	data = resized(data, max(len(data), int(e.off)+len(e.data)))
	copy(data[e.off:], e.data)
	return data
}

// resized returns a copy of data with this size.
func resized(data []byte, size int) []byte {
	now := make([]byte, size)
	copy(now, data)
	return now
}

// bytes returns what a file has after the power cut.
func (s *State) bytes(f *inode) []byte {
	if data := s.database(f); data != nil {
		return data
	}
	var synced, data []byte
	low := 0 // bytes below this offset were in the file all the time
	open := false
	for _, e := range s.changes[f] {
		data = e.apply(data)
		if e.synced < s.at {
			synced, low = data, len(data)
		} else {
			open, low = true, min(low, len(data))
		}
	}
	if !open || s.rng.Float64() >= s.damage {
		return data
	}
	return s.torn(synced, data, low)
}

// database returns the content of a file that is a database to which something was committed, or nil. The commit under
// way is there or not.
func (s *State) database(f *inode) []byte {
	var data []byte
	for _, v := range f.versions {
		if v.step < s.at || v.step == s.at && s.rng.IntN(2) == 0 {
			data = v.data
		}
	}
	return data
}

// torn returns a mixture of two contents of a file: the one that is on the disk, and the one that was written since.
// The bytes below low are those of one of the two, the others may be zeros as well.
func (s *State) torn(old, now []byte, low int) []byte {
	const sector, page = 512, 4096
	block := []int{sector, page}[s.rng.IntN(2)]
	mixed := make([]byte, len(now))
	copy(mixed, old[:low])
	switch s.rng.IntN(4) {
	case 0: // nothing was written
		return old
	case 1: // the size was
		return mixed
	case 2: // a beginning was
		return now[:low+s.rng.IntN(len(now)-low+1)]
	}
	for at := 0; at < len(now); at += block {
		switch end := min(at+block, len(now)); s.rng.IntN(3) {
		case 0:
			copy(mixed[at:end], now[at:])
		case 1:
			if at < len(old) {
				copy(mixed[at:end], old[at:])
			}
		}
	}
	return mixed
}

// Write makes the state at dir, which must not exist.
func (s *State) Write(dir string) error {
	return s.write(s.root, dir, map[*inode]string{})
}

func (s *State) write(n *inode, path string, made map[*inode]string) (err error) {
	if first, ok := made[n]; ok {
		if n.kind == unix.S_IFDIR {
			return fmt.Errorf("%s: the directory is also %s", path, first)
		}
		return os.Link(first, path)
	}
	made[n] = path
	switch n.kind {
	case unix.S_IFDIR:
		if err = os.Mkdir(path, 0o700); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(s.names[n])) {
			if child := s.names[n][name]; child != nil {
				if err = s.write(child, filepath.Join(path, name), made); err != nil {
					return err
				}
			}
		}
	case unix.S_IFREG:
		err = os.WriteFile(path, s.bytes(n), 0o600)
	case unix.S_IFLNK:
		err = os.Symlink(n.target, path)
	default:
		err = unix.Mknod(path, n.kind|0o600, int(n.rdev))
	}
	if err != nil {
		return err
	}
	return s.setAttrs(n, path)
}

func (s *State) setAttrs(n *inode, path string) error {
	a := s.attrs[n]
	if a == nil {
		a = n.first
	}
	if a.uid != 0 || a.gid != 0 {
		if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
			return err
		}
	}
	if n.kind != unix.S_IFLNK && a.mode != 0o600 {
		if err := unix.Chmod(path, a.mode); err != nil {
			return err
		}
	}
	for name, value := range a.xattrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return err
		}
	}
	if a.mtime == nil {
		return nil
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{*a.mtime, *a.mtime}, unix.AT_SYMLINK_NOFOLLOW)
}
