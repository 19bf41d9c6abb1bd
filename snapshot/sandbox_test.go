package snapshot_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// sandbox describes the restrictions of a process.
type sandbox struct {
	Name   string
	Errno  uintptr   // the error of denied system calls
	Denied []uintptr // numbers of the denied system calls
	NoProc bool      // /proc is not mounted
	Base   string
}

const sysFchmodat2 = 452 // the same number on every architecture

// A seccomp profile that is too old to know these system calls may deny them. newCalls are those that Tank makes:
// each is also denied alone.
var (
	newCalls = map[string]uintptr{
		"openat2": unix.SYS_OPENAT2, "fchmodat2": sysFchmodat2, "syncfs": unix.SYS_SYNCFS,
		"copy_file_range": unix.SYS_COPY_FILE_RANGE, "renameat2": unix.SYS_RENAMEAT2, "ioctl": unix.SYS_IOCTL,
	}
	otherCalls = []uintptr{
		unix.SYS_STATX, unix.SYS_FACCESSAT2, unix.SYS_CLOSE_RANGE, unix.SYS_PIDFD_OPEN, unix.SYS_MOUNT_SETATTR,
		unix.SYS_SYNC_FILE_RANGE, unix.SYS_IO_URING_SETUP, unix.SYS_GETRANDOM,
	}
)

// sandboxLayers need whiteouts, an opaque directory, a fix-up with a link, modes that a chown clears, and special
// files.
var sandboxLayers = [][]Item{
	{D("./").Mode(0o1777), D("d").Mode(0o2755).Owner(5, 0), F("d/x", "1").Mode(0o4755).Owner(7, 0), S("s", "x"),
		P("p").Mode(0o600), F("gone", "1"), D("r").Mode(0o500), F("r/a", "2"), D("o"), F("o/f", "3"), S("via", "d")},
	{W(".wh.gone"), D("d"), F("d/y", "2"), H("d/z", "d/y"), F("r/q", "1"), H("l", "d/x"), H("sl", "s"),
		W("o/.wh..wh..opq"),
		F("o/g", "4"), F("via/more", "5")},
}

// TestSandboxes makes a rootfs, a clone and a container in processes with denied system calls, and compares the trees
// with those of a process without restrictions.
func TestSandboxes(t *testing.T) {
	requireRoot(t)
	rows := []sandbox{{Name: "nothing"}, {Name: "no proc", NoProc: true}}
	all := slices.Clone(otherCalls)
	for name, call := range newCalls {
		rows = append(rows, sandbox{Name: name, Errno: uintptr(unix.EPERM), Denied: []uintptr{call}})
		all = append(all, call)
	}
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS} {
		rows = append(rows, sandbox{Name: "all " + errno.Error(), Errno: uintptr(errno), Denied: all},
			sandbox{Name: "all without proc " + errno.Error(), Errno: uintptr(errno), Denied: all, NoProc: true})
	}
	for _, uid := range []uint32{0, nobody} {
		base := publicDir(t)
		must(t, os.Chown(base, int(uid), int(uid)))
		cmd := again(t, sandboxChild, "", "^TestSandboxChild$")
		var want [][]string
		for i, row := range rows {
			if row.NoProc && uid != 0 {
				continue // an ordinary user may not unmount /proc
			}
			row.Base = filepath.Join(base, strconv.Itoa(i))
			arg, err := json.Marshal(row)
			must(t, err)
			c := exec.Command(cmd.Path, cmd.Args[1:]...)
			c.Dir = base
			c.Env = append(os.Environ(), "TMPDIR="+base, "HOME="+base, childEnv+"="+sandboxChild+string(arg))
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
			if row.NoProc {
				c.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
			}
			out, err := c.CombinedOutput()
			if err != nil {
				t.Errorf("uid %d, %s: %v\n%s", uid, row.Name, err, out)
				continue
			}
			var got [][]string
			for _, way := range []string{"rootfs", "clone", "container"} {
				path, err := os.ReadFile(filepath.Join(row.Base, way))
				must(t, err)
				got = append(got, List(t, string(path)))
			}
			if want == nil {
				want = got
			}
			if !slices.EqualFunc(got, want, slices.Equal) {
				t.Errorf("uid %d, %s: %q, want %q", uid, row.Name, got, want)
			}
		}
	}
}

// TestSandboxChild is the child of TestSandboxes.
func TestSandboxChild(t *testing.T) {
	arg, ok := childOf(sandboxChild)
	if !ok {
		t.Skip("TestSandboxes runs it")
	}
	var box sandbox
	must(t, json.Unmarshal([]byte(arg), &box))
	if box.NoProc {
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(t, unix.Unmount("/proc", unix.MNT_DETACH))
	}
	must(t, deny(box.Denied, box.Errno))
	must(t, os.Mkdir(box.Base, 0o755))
	must(t, putEveryWay(t, box.Base, sandboxLayers))
}

// deny makes the kernel refuse the given system calls of this process.
func deny(calls []uintptr, errno uintptr) error {
	if len(calls) == 0 {
		return nil
	}
	const retErrno, retAllow = 0x50000, 0x7fff0000 // SECCOMP_RET_*
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for _, n := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(n)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: retErrno | uint32(errno)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: retAllow})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setModeFilter, forAllThreads = 1, 1 // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
	_, _, refused := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, forAllThreads, uintptr(unsafe.Pointer(&prog)))
	if refused != 0 {
		return fmt.Errorf("seccomp: %w", refused)
	}
	return nil
}

// putEveryWay makes a rootfs of the layers, a clone of it and a container in directory mode, and checks the store. It
// writes the paths of the three trees to the files rootfs, clone and container in base.
func putEveryWay(t *testing.T, base string, lists [][]Item) (err error) {
	root := filepath.Join(base, "root")
	must(t, os.Mkdir(root, 0o700))
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), nil)
	if err != nil {
		return err
	}
	user := os.Geteuid() != 0
	blobs := memory{}
	s, err := snapshot.Open(root, db, blobs, &snapshot.Options{
		SyncDelay: -1, Unpack: unpack.Options{Unprivileged: user}, UserXattr: user, Directory: true,
	})
	if err != nil {
		return err
	}
	defer func() {
		var faults []error
		report := func(err metadata.Fault) { faults = append(faults, err) }
		err = errors.Join(err, s.Check(ctx, report), db.Check(report), s.Layers().Sync(ctx), s.Close(), db.Close())
		err = errors.Join(append(faults, err)...)
	}()
	var layers []layer.Pair
	var recs []metadata.Layer
	for _, items := range lists {
		layers = append(layers, blobs.add(t, Tar(t, items...)))
	}
	for _, l := range layers {
		rec, err := s.Layers().Unpack(ctx, holder, l)
		if err != nil {
			return err
		}
		recs = append(recs, rec)
	}
	rootfs, err := s.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, nil)
	if err != nil {
		return fmt.Errorf("assemble: %w", err)
	}
	clone := filepath.Join(base, "cloned")
	if err := snapshot.Clone(ctx, rootfs, clone); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	container, err := userPrepared(t, s, layers)
	if err != nil {
		return fmt.Errorf("container: %w", err)
	}
	for way, path := range map[string]string{"rootfs": rootfs, "clone": clone, "container": container} {
		err = errors.Join(err, os.WriteFile(filepath.Join(base, way), []byte(strings.TrimSpace(path)), 0o644))
	}
	return err
}
