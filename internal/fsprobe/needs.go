package fsprobe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// probe is one run of Try.
type probe struct {
	path string
	user bool // overlay's attributes are user.overlay.*, which attributes finds out
}

// need is one thing that Tank needs.
type need struct {
	name    string
	overlay bool // only overlay mounts need it
	sync    bool // trying it writes to the disk
	try     func(*probe) error
}

// needed lists the needs in an order in which the first that fails is the clearest reason.
var needed = []need{
	{name: "modes of files", try: (*probe).modes},
	{name: "owners of files", try: (*probe).owners},
	{name: "modification times", try: (*probe).times},
	{name: "file locks (flock)", try: (*probe).locks},
	{name: "shared memory maps that show what is written (mmap)", try: (*probe).maps},
	{name: "symbolic links", try: (*probe).symlinks},
	{name: "hard links", try: (*probe).links},
	{name: "renames that replace a file", try: (*probe).renames},
	{name: "renames of directories", try: (*probe).renamesOfDirectories},
	{name: "names that distinguish case", try: (*probe).names},
	{name: "device files or sockets, one of which marks what a layer removes", try: (*probe).marks},
	{name: "writing files and directories to the disk (fsync)", sync: true, try: (*probe).syncs},
	{name: "whiteouts (device files 0:0), which overlay mounts need", overlay: true, try: (*probe).whiteouts},
	{name: "extended attributes, which overlay mounts need", overlay: true, try: (*probe).attributes},
	{name: "what overlay needs of the directory that a container writes to", overlay: true, try: (*probe).upper},
}

// at returns the path of an entry of the probe's directory.
func (p *probe) at(name string) string { return filepath.Join(p.path, name) }

func (p *probe) write(name, text string) error { return os.WriteFile(p.at(name), []byte(text), 0o600) }

// wrong is the error of a call that succeeded without doing what it should.
func wrong(format string, args ...any) error { return fmt.Errorf(format, args...) }

func stat(path string) (st unix.Stat_t, err error) {
	return st, unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW)
}

func (p *probe) modes() error {
	if err := p.write("file", "tank"); err != nil {
		return err
	}
	for _, mode := range []uint32{0o751, 0o4711, 0o640} { // what is left of 4711 must not stay
		if err := unix.Chmod(p.at("file"), mode); err != nil {
			return err
		}
		st, err := stat(p.at("file"))
		if err != nil {
			return err
		}
		if st.Mode&0o7777 != mode {
			return wrong("after chmod %04o a file has mode %04o", mode, st.Mode&0o7777)
		}
	}
	return nil
}

// owners finds out whether a change of owners that succeeds takes effect. A process that may not
// change them is no fault of the file system.
func (p *probe) owners() error {
	if os.Geteuid() != 0 {
		return nil
	}
	defer func() { _ = unix.Chown(p.at("file"), 0, 0) }()
	if err := unix.Chown(p.at("file"), 1, 2); err != nil {
		return nil
	}
	st, err := stat(p.at("file"))
	if err == nil && (st.Uid != 1 || st.Gid != 2) {
		err = wrong("after chown 1:2 a file belongs to %d:%d", st.Uid, st.Gid)
	}
	return err
}

func (p *probe) times() error {
	const then = 1_000_000_000
	ts := []unix.Timespec{{Sec: then}, {Sec: then}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p.at("file"), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	st, err := stat(p.at("file"))
	if err == nil && (st.Mtim.Sec < then-2 || st.Mtim.Sec > then+2) {
		err = wrong("a file keeps another time than it is given")
	}
	return err
}

func (p *probe) locks() error {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(p.at("file"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if err := unix.Flock(fds[0], unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	switch err := unix.Flock(fds[1], unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return wrong("a file can be locked twice at once")
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil
	default:
		return err
	}
}

// maps writes to a file and reads it through a map, as the database does.
func (p *probe) maps() (err error) {
	f, err := os.OpenFile(p.at("map"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	if _, err := f.Write(page); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, len(page), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil { // SIGBUS
			err = wrong("a page of a mapped file cannot be read")
		}
	}()
	for i := range byte(3) { // also what is written after the page was read
		if _, err := f.WriteAt([]byte{i + 1}, 0); err != nil {
			return err
		}
		if m[0] != i+1 {
			return wrong("a map does not show what was written to its file")
		}
	}
	return nil
}

func (p *probe) symlinks() error {
	const target = "no/such/file"
	if err := os.Symlink(target, p.at("symlink")); err != nil {
		return err
	}
	got, err := os.Readlink(p.at("symlink"))
	if err == nil && got != target {
		err = wrong("a symbolic link has another target than it was given")
	}
	return err
}

func (p *probe) links() error {
	if err := os.Link(p.at("file"), p.at("link")); err != nil {
		return err
	}
	one, err := stat(p.at("file"))
	if err != nil {
		return err
	}
	two, err := stat(p.at("link"))
	if err == nil && (one.Ino != two.Ino || one.Nlink != 2) {
		err = wrong("two names of a file are two files")
	}
	return err
}

func (p *probe) renames() error {
	if err := errors.Join(p.write("new", "new"), p.write("old", "old")); err != nil {
		return err
	}
	if err := os.Rename(p.at("new"), p.at("old")); err != nil { //nolint:forbidigo // no entry of a root
		return err
	}
	text, err := os.ReadFile(p.at("old"))
	if err != nil {
		return err
	}
	if _, err := stat(p.at("new")); !errors.Is(err, unix.ENOENT) || string(text) != "new" {
		return wrong("a rename does not replace the file that has the name")
	}
	return nil
}

func (p *probe) renamesOfDirectories() error {
	err := os.MkdirAll(p.at("from/below"), 0o700)
	if err == nil {
		err = os.Rename(p.at("from"), p.at("to")) //nolint:forbidigo // no entry of a root
	}
	if err != nil {
		return err
	}
	_, gone := stat(p.at("from"))
	if _, err := stat(p.at("to/below")); err != nil || !errors.Is(gone, unix.ENOENT) {
		return wrong("a directory keeps its old name, or loses what is in it")
	}
	return nil
}

func (p *probe) names() error {
	if err := p.write("Case", ""); err != nil {
		return err
	}
	if _, err := stat(p.at("cASE")); !errors.Is(err, unix.ENOENT) {
		return wrong("the names Case and cASE are one file")
	}
	return nil
}

// marks makes what marks a removed path in a layer that is never mounted: the device 0:0 or, where
// that is refused, a socket.
func (p *probe) marks() error {
	if p.node("mark", unix.S_IFCHR) == nil {
		return nil
	}
	return p.node("mark", unix.S_IFSOCK)
}

func (p *probe) whiteouts() error { return p.node("whiteout", unix.S_IFCHR) }

// node makes a special file, and looks whether it is one.
func (p *probe) node(name string, kind uint32) error {
	if err := unix.Mknod(p.at(name), kind, 0); err != nil {
		return err
	}
	st, err := stat(p.at(name))
	if err == nil && (st.Mode&unix.S_IFMT != kind || st.Rdev != 0) {
		err = wrong("another file is made in its place")
	}
	return err
}

func (p *probe) syncs() error {
	for _, name := range []string{"file", "."} {
		f, err := os.Open(p.at(name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
