package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// unfitNode is a file of a FUSE server that passes everything to a directory, but for what the
// server does not do. Network file systems and FUSE servers have such faults.
type unfitNode struct {
	fs.LoopbackNode
	lacks string
}

// mountUnfit mounts a FUSE server until the test ends. It returns the mount and the directory behind
// it.
func mountUnfit(t *testing.T, e *Env, lacks string) (mount, behind string) {
	t.Helper()
	mount, behind = e.Path("mount"), e.Path("behind")
	for _, dir := range []string{mount, behind} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(behind, &st); err != nil {
		t.Fatal(err)
	}
	node := func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &unfitNode{fs.LoopbackNode{RootData: r}, lacks}
	}
	root := &fs.LoopbackRoot{Path: behind, Dev: uint64(st.Dev)}
	root.NewNode = node //nolint:staticcheck // WrapChild would have to copy the node that it is given
	root.RootNode = node(root, nil, "", nil)
	server, err := fs.Mount(mount, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, EnableLocks: strings.HasPrefix(lacks, "flock"),
		FsName: "unfit", Name: "unfit", Options: []string{"suid", "dev"},
		MaxStackDepth: -1, // the kernel must not read and map the files behind the server by itself
	}})
	if err != nil {
		skipOrFail(t, fmt.Sprintf("needs FUSE: %v", err))
	}
	keepFuseFromChildren(t)
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = syscall.Unmount(mount, syscall.MNT_DETACH)
		}
	})
	return mount, behind
}

func (n *unfitNode) is(lacks string, errno syscall.Errno) syscall.Errno {
	if n.lacks == lacks {
		return errno
	}
	return 0
}

func (n *unfitNode) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode,
	syscall.Errno) {
	if errno := n.is("hard links", syscall.EPERM); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

func (n *unfitNode) Symlink(
	ctx context.Context,
	target, name string,
	out *fuse.EntryOut,
) (*fs.Inode, syscall.Errno) {
	if errno := n.is("symbolic links", syscall.EPERM); errno != 0 {
		return nil, errno
	}
	return n.LoopbackNode.Symlink(ctx, target, name, out)
}

func (n *unfitNode) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (*fs.Inode,
	syscall.Errno) {
	if errno := n.is("special files", syscall.EPERM); errno != 0 && mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, errno
	}
	if errno := n.is("device files", syscall.EPERM); errno != 0 && mode&syscall.S_IFMT == syscall.S_IFCHR {
		return nil, errno
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, dev, out)
}

func (n *unfitNode) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	if errno := n.is("attributes", syscall.EOPNOTSUPP); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Setxattr(ctx, attr, data, flags)
}

// behind returns the path of an entry in the directory behind the server.
func (n *unfitNode) behind(name string) string {
	return filepath.Join(n.RootData.Path, n.Path(n.Root()), name)
}

func (n *unfitNode) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string,
	flags uint32) syscall.Errno {
	var st syscall.Stat_t
	if n.lacks == "renames of directories" && syscall.Lstat(n.behind(name), &st) == nil &&
		st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return syscall.EXDEV
	}
	if to, ok := parent.(*unfitNode); ok && n.lacks == "renames over files" &&
		syscall.Lstat(to.behind(newName), &st) == nil {
		return syscall.EEXIST
	}
	return n.LoopbackNode.Rename(ctx, name, parent, newName, flags)
}

func (n *unfitNode) Setattr(
	ctx context.Context,
	f fs.FileHandle,
	in *fuse.SetAttrIn,
	out *fuse.AttrOut,
) syscall.Errno {
	for lacks, bits := range map[string]uint32{
		"modes": fuse.FATTR_MODE, "owners": fuse.FATTR_UID | fuse.FATTR_GID,
		"times": fuse.FATTR_ATIME | fuse.FATTR_MTIME,
	} {
		if n.lacks == lacks {
			in.Valid &^= bits // without an error
		}
	}
	return n.LoopbackNode.Setattr(ctx, f, in, out)
}

func (n *unfitNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, opened, errno := n.LoopbackNode.Open(ctx, flags)
	if n.lacks == "maps" {
		opened |= fuse.FOPEN_DIRECT_IO
	}
	return f, opened, errno
}

func (n *unfitNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode,
	fs.FileHandle, uint32, syscall.Errno) {
	inode, f, opened, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if n.lacks == "maps" {
		opened |= fuse.FOPEN_DIRECT_IO
	}
	return inode, f, opened, errno
}

func (n *unfitNode) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	if errno := n.is("fsync", syscall.EINVAL); errno != 0 {
		return errno
	}
	if file, ok := f.(fs.FileFsyncer); ok {
		return file.Fsync(ctx, flags)
	}
	return 0
}

func (n *unfitNode) Setlk(context.Context, fs.FileHandle, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return n.is("flock", syscall.EOPNOTSUPP) // "flock without effect": every lock is granted
}

func (n *unfitNode) Setlkw(ctx context.Context, f fs.FileHandle, owner uint64, lk *fuse.FileLock,
	flags uint32) syscall.Errno {
	return n.Setlk(ctx, f, owner, lk, flags)
}

// TestUnfitFileSystems: a root on a file system that lacks what Tank needs is refused with the
// reason, by a pull as by both modes of serve, and nothing stays there. Where only overlay cannot
// work, only serve in overlay mode refuses.
func TestUnfitFileSystems(t *testing.T) {
	Require(t)
	img := rawImage(t, gzipLayer(t, dir("d", 0o755), file("d/a", 0o644, "a")))
	for _, tc := range []struct {
		lacks   string
		reason  string
		overlay bool // only overlay needs it
	}{
		{"modes", "modes of files", false},
		{"owners", "owners of files", false},
		{"times", "modification times", false},
		{"flock", "file locks (flock)", false},
		{"flock without effect", "file locks (flock): a file can be locked twice", false},
		{"maps", "shared memory maps", false},
		{"symbolic links", "symbolic links", false},
		{"hard links", "hard links", false},
		{"renames over files", "renames that replace a file", false},
		{"renames of directories", "renames of directories", false},
		{"special files", "device files or sockets", false},
		{"fsync", "writing files and directories to the disk (fsync)", false},
		{"device files", "whiteouts (device files 0:0), which overlay", true},
		{"attributes", "extended attributes, which overlay", true},
	} {
		t.Run("lacks "+tc.lacks, func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.PushBuilt(img, "test/img:1")
			mount, behind := mountUnfit(t, e, tc.lacks)
			k := e.NewTank()
			k.Root, k.broken = filepath.Join(mount, "new", "root"), true
			config := func(mode string) string { return writeFile(e, mode+".toml", "mode = \""+mode+"\"\n") }
			for what, argv := range map[string][]string{
				"pull":              k.Args("pull", "--progress", "none", "--plain-http", r.Ref("test/img:1")),
				"serve in overlay":  k.Args("serve", "--address", k.Socket, "--config", config("overlay")),
				"serve directories": k.Args("serve", "--address", k.Socket, "--config", config("directory")),
			} {
				if tc.overlay && what != "serve in overlay" {
					continue
				}
				hint := "Put the root on a local file system"
				if tc.overlay {
					hint = `Serve the root with mode = "directory"`
				}
				res := e.Run(append([]string{"timeout", "20"}, argv...)...) // serve would go on
				if res.Code != 1 ||
					!strings.Contains(res.Stderr, "its file system (fuse) lacks what Tank needs: "+tc.reason) ||
					!strings.Contains(res.Stderr, hint) {
					t.Errorf("%s: %s", what, res)
				}
				if left, err := os.ReadDir(behind); err != nil || len(left) > 0 {
					t.Errorf("%s left %v, %v", what, left, err)
				}
			}
			if !tc.overlay {
				return
			}
			rootfs := k.Pull(r.Ref("test/img:1"))
			if text, err := os.ReadFile(filepath.Join(rootfs, "d/a")); err != nil || string(text) != "a" {
				t.Errorf("rootfs: %q %v", text, err)
			}
			k.MustRun("check")
			res := e.Run(
				append(
					[]string{"timeout", "20"},
					k.Args(
						"serve",
						"--address",
						k.Socket,
						"--config",
						config("overlay"),
					)...)...) // a root that exists
			if res.Code != 1 || !strings.Contains(res.Stderr, tc.reason) {
				t.Errorf("serve in overlay: %s", res)
			}
			k.Config = "mode = \"directory\"\n"
			k.Serve().Stop()
		})
	}
}
