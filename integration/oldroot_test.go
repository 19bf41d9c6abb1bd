package integration

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// oldRoots is the directory of roots that the program of commit 36efd09 made. Its README says how.
const oldRoots = "testdata/root-36efd09"

// The names that the old roots and the databases of their containerds contain.
const (
	oldNamespace = "kept"
	oldActive    = "active"    // a snapshot that a container wrote into
	oldCommitted = "committed" // a snapshot that was committed after such writes
)

// oldDatabase is where containerd keeps its database, relative to its directory.
const oldDatabase = "root/io.containerd.metadata.v1.bolt/meta.db"

// oldKinds are the kept roots, by the name of their archives. A root with a nil Setup was never owned by a daemon.
var oldKinds = map[string]*Setup{"command": nil, "overlay": {}, "directory": {Directory: true}}

// oldImages are the images in each kept root, by repository and tag. They share their first layer.
func oldImages() map[string][][]Entry {
	base := []Entry{
		dir("usr", 0o755), dir("usr/lib", 0o751, owner(3, 4), at(1600000000)), dir("etc", 0o755),
		symlink("lib", "usr/lib"),
		file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n"),
		file("usr/target", 0o640, "linked from above\n", owner(31, 32), at(1400000005), xattr("user.note", "linked")),
		file("usr/first", 0o644, "two names\n"), hardlink("usr/second", "usr/first", 0o644),
		dir("opaque", 0o755), file("opaque/old", 0o644, "old\n"), dir("opaque/sub", 0o755),
		file("opaque/sub/old", 0o644, "old\n"),
		dir("removed", 0o755), file("removed/x", 0o644, "x\n"),
		dir("implied", 0o711, owner(21, 22), at(1400000003), xattr("user.kind", "implied")),
		file("implied/stays", 0o644, "stays\n"), file("implied/gone", 0o644, "gone\n"),
		file("usr/suid", 0o4755, "suid\n"),
		file("usr/capable", 0o755, "capable\n", xattr("security.capability", netRaw)),
		fifo("usr/fifo", 0o620, owner(61, 62)),
	}
	changes := []Entry{
		file("lib/through-a-link", 0o644, "the directory is a link below\n"),
		hardlink("implied/linked", "usr/target", 0o640, owner(31, 32), at(1400000005), xattr("user.note", "linked")),
		file("implied/.wh.gone", 0, ""),
		file(".wh.removed", 0, ""),
		dir("opaque", 0o750, owner(51, 52)), file("opaque/new", 0o644, "new\n"), file("opaque/.wh..wh..opq", 0, ""),
	}
	return map[string][][]Entry{
		"test/first:1":  {base, changes},
		"test/second:1": {base, {file("etc/second", 0o600, "second\n", owner(1, 2)), file("usr/.wh.second", 0, "")}},
	}
}

// TestOldRoots: the present program serves a root that the program of 36efd09 made. It finds no fault,
// lists the images, answers pulls without the network, and gives containerd the same files in images
// and snapshots. It neither unpacks a layer again nor assembles a rootfs again.
//
// With TANK_OLD_ROOTS=write the test makes the kept roots instead, with the program that TANK_BINARY names.
func TestOldRoots(t *testing.T) {
	write := os.Getenv("TANK_OLD_ROOTS") == "write"
	for _, kind := range slices.Sorted(maps.Keys(oldKinds)) {
		t.Run(kind, func(t *testing.T) {
			o := &oldRoot{T: t, e: New(t), kind: kind, setup: oldKinds[kind]}
			if write {
				o.write()
				return
			}
			o.unpack()
			o.checkCommands()
			if o.setup != nil {
				o.checkNode()
			}
		})
	}
}

// oldRoot is the test of one kept root.
type oldRoot struct {
	*testing.T
	e     *Env
	kind  string
	setup *Setup
	k     *TankRoot
	c     *Containerd // nil: none yet
}

func (o *oldRoot) archive() string { return filepath.Join(oldRoots, o.kind+".tar.gz") }

// list returns the name of the file that lists the tree of an image or a snapshot.
func (o *oldRoot) list(name string) string {
	return filepath.Join(oldRoots, strings.NewReplacer("/", "-", ":", "-").Replace(name)+".jsonl")
}

// unpack extracts the archive. It moves the root to the place of a new TankRoot, and the database to the place where
// NewContainerd will start a containerd.
func (o *oldRoot) unpack() {
	archive, err := filepath.Abs(o.archive())
	if err != nil {
		o.Fatal(err)
	}
	to := o.e.Path("kept")
	if err := os.Mkdir(to, 0o755); err != nil {
		o.Fatal(err)
	}
	o.e.MustRun("tar", "-C", to, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpzf", archive)
	o.k = o.e.NewTank()
	if err := os.Rename(filepath.Join(to, "tank"), o.k.Root); err != nil {
		o.Fatal(err)
	}
	if o.setup == nil {
		return
	}
	database := o.e.Path("c", oldDatabase)
	if err := os.MkdirAll(filepath.Dir(database), 0o755); err != nil {
		o.Fatal(err)
	}
	if err := os.Rename(filepath.Join(to, "meta.db"), database); err != nil {
		o.Fatal(err)
	}
}

// checkCommands checks the root with commands only.
func (o *oldRoot) checkCommands() {
	before := o.inodes()
	o.k.MustRun("check")
	listed := o.k.MustRun("images")
	for name := range oldImages() {
		ref := TestRegistry + "/" + name
		if !strings.Contains(listed, ref+" ") {
			o.Errorf("images does not list %s: %q", ref, listed)
		}
		o.checkTree(name, o.k.Pull(ref, "--offline"))
	}
	o.k.MustRun("gc")
	o.k.MustRun("check")
	o.compareInodes(before)
}

// checkNode starts a daemon and the containerd whose database was kept, and checks what containerd mounts.
func (o *oldRoot) checkNode() {
	before := o.inodes()
	if o.setup.Directory {
		o.k.Config += directoryMode
	}
	o.k.Serve()
	o.c = o.e.NewContainerd(ContainerdOptions{Snapshotter: "tank", Import: o.k.DropIn()})
	o.c.Namespace = oldNamespace
	for name := range oldImages() {
		at := o.c.Mount(TestRegistry + "/" + name)
		o.checkTree(name, at)
		o.c.Unmount(at)
	}
	o.mounted(oldActive, func(at string) { o.checkTree(oldActive+"-"+o.kind, at) })
	o.snapshots("prepare", "above", oldCommitted)
	o.mounted("above", func(at string) { o.checkTree(oldCommitted+"-"+o.kind, at) })
	o.snapshots("rm", "above")
	o.k.MustRun("check")
	o.compareInodes(before)
	if holders := o.k.MustRun("holders"); strings.Count(holders, "\ncontainerd") != 1 {
		o.Errorf("the containerd is not taken for the one that used the root: %q", holders)
	}
}

func (o *oldRoot) snapshots(args ...string) string {
	return o.c.Ctr(append([]string{"snapshots", "--snapshotter", "tank"}, args...)...)
}

// mounted mounts a snapshot, calls f with the mount point, and unmounts it.
func (o *oldRoot) mounted(key string, f func(at string)) {
	at := o.e.Path("mnt-" + randomHex(3))
	if err := os.Mkdir(at, 0o755); err != nil {
		o.Fatal(err)
	}
	o.e.MustRun("sh", "-c", o.snapshots("mounts", at, key))
	f(at)
	o.e.MustRun("umount", at)
}

// checkTree compares a directory with the kept list of an image or a snapshot.
func (o *oldRoot) checkTree(name, at string) {
	o.Helper()
	want, err := ReadListing(o.list(name))
	if err != nil {
		o.Fatal(err)
	}
	CheckTree(o.T, name, want, at)
}

// inodes returns the inode numbers of all files in layers and of all directories of root filesystems, by path.
func (o *oldRoot) inodes() map[string]uint64 {
	all := o.k.LayerInodes(o.T)
	rootfs, err := filepath.Glob(filepath.Join(o.k.Root, "rootfs", "sha256", "*"))
	if err != nil || len(rootfs) == 0 {
		o.Fatalf("no rootfs: %v", err)
	}
	for _, name := range rootfs {
		all[name] = inodeOf(o.T, name)
	}
	return all
}

// compareInodes fails the test if a layer or a rootfs was made again or removed.
func (o *oldRoot) compareInodes(before map[string]uint64) {
	o.Helper()
	now := o.inodes()
	for name, inode := range before {
		if now[name] != inode {
			o.Errorf("%s was made again or removed", name)
		}
	}
}

// write makes the root, and writes the archive and the lists of the trees.
func (o *oldRoot) write() {
	r := o.e.NewRegistry()
	for name, layers := range oldImages() {
		img, err := BuildImage(layers, helloConfig)
		if err != nil {
			o.Fatal(err)
		}
		r.PushBuilt(img, name)
	}
	if o.setup == nil {
		o.k = o.e.NewTank()
		if err := writeHosts(o.e.Path("hosts"), r.Addr); err != nil {
			o.Fatal(err)
		}
		o.writeImages(r)
	} else {
		o.k, o.c = o.e.startNode(*o.setup, r)
		o.c.Namespace = oldNamespace
		if err := writeHosts(o.e.Path("hosts"), r.Addr); err != nil {
			o.Fatal(err)
		}
		o.writeNode(r)
	}
	o.e.MustRun("tar", "-C", o.e.Path("kept"), "--format=pax", "--sort=name", "--xattrs", "--xattrs-include=*",
		"--numeric-owner", "-czf", o.e.Path("kept.tar.gz"), ".")
	archive, err := os.ReadFile(o.e.Path("kept.tar.gz"))
	if err == nil {
		err = os.WriteFile(o.archive(), archive, 0o644)
	}
	if err != nil {
		o.Fatal(err)
	}
}

// writeImages pulls the images with commands, ends the daemon and copies the root.
func (o *oldRoot) writeImages(r *Registry) {
	for name, layers := range oldImages() {
		rootfs := o.k.Pull(TestRegistry+"/"+name, "--hosts-dir", o.e.Path("hosts"))
		want, err := ExpectedTree(layers)
		if err != nil {
			o.Fatal(err)
		}
		CheckTree(o.T, name, want, rootfs)
		o.writeList(name, rootfs)
	}
	if o.k.Daemon() != nil {
		o.k.Daemon().Stop()
	}
	if err := os.MkdirAll(o.e.Path("kept"), 0o755); err != nil {
		o.Fatal(err)
	}
	o.e.MustRun("cp", "-a", o.k.Root, o.e.Path("kept", "tank"))
	if o.c != nil {
		o.e.MustRun("cp", filepath.Join(o.c.Dir, oldDatabase), o.e.Path("kept", "meta.db"))
	}
}

// writeNode has containerd pull the images, and changes files in two snapshots, of which it commits one.
func (o *oldRoot) writeNode(r *Registry) {
	for name := range oldImages() {
		o.c.Pull(TestRegistry + "/" + name)
	}
	img, err := BuildImage(oldImages()["test/first:1"], helloConfig)
	if err != nil {
		o.Fatal(err)
	}
	const script = `cd "$1" && echo written > etc/written && rm etc/passwd && rm -r opaque && ` +
		`mkdir opaque && echo again > opaque/again && ln usr/first usr/third && chown 7:8 usr/suid`
	for _, name := range []string{oldActive, oldCommitted} {
		key := name
		if name == oldCommitted {
			key += "-active"
		}
		o.snapshots("prepare", key, topSnapshot(img.Image))
		o.mounted(key, func(at string) {
			o.e.MustRun("sh", "-c", script, "sh", at)
			o.writeList(name+"-"+o.kind, at)
		})
	}
	o.snapshots("commit", oldCommitted, oldCommitted+"-active")
	o.c.Stop()
	o.writeImages(r)
}

// writeList writes the list of a tree.
func (o *oldRoot) writeList(name, at string) {
	nodes, err := Tree(at)
	if err != nil {
		o.Fatal(err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, n := range nodes {
		if err := enc.Encode(n); err != nil {
			o.Fatal(err)
		}
	}
	if err := os.WriteFile(o.list(name), b.Bytes(), 0o644); err != nil {
		o.Fatal(err)
	}
}
