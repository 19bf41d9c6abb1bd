package snapshot_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// theIDs are those of the tests' user namespace, in the usual form: the user that made it, and that
// user's subordinate ids.
var theIDs = idmap.Map{{Container: 0, Host: nobody, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}

// inNamespace says that this process is root of a user namespace only: the child of TestNamespace.
func inNamespace() bool { return os.Getenv(namespaceEnv) != "" }

// namespaceEnv says so also to children of that child.
const namespaceEnv = "SNAPSHOT_TEST_NAMESPACE"

// rights are how this process has to unpack.
func rights() unpack.Options {
	if inNamespace() {
		return unpack.Options{Confined: true, UIDs: theIDs, GIDs: theIDs}
	}
	return unpack.Options{}
}

var namespaceLacks = regexp.MustCompile(` (?:trusted\.|security\.(?:[^c]|c[^a]))\S*="(?:[^"\\]|\\.)*"`)

// confined turns a tree of root's into that of root in a user namespace: without devices, and without
// the attributes that are not that root's to write.
func confined(lines []string) (out []string) {
	for _, l := range lines {
		_, rest, _ := strings.Cut(l, " ")
		if !strings.HasPrefix(rest, "char") && !strings.HasPrefix(rest, "block") {
			out = append(out, namespaceLacks.ReplaceAllString(l, ""))
		}
	}
	return out
}

// TestNamespace runs the tests of what containerd is given again, as root of a user namespace with
// mounts of its own: layers are marked with user.overlay.* and mounted with userxattr.
func TestNamespace(t *testing.T) {
	requireMounts(t)
	if testing.Short() {
		t.Skip("runs other tests once more")
	}
	base := publicDir(t)
	must(t, os.Chown(base, nobody, nobody))
	cmd := again(t, "", "", "^("+strings.Join(namespaceTests, "|")+")$")
	cmd.Env = append(cmd.Env, "TMPDIR="+base, namespaceEnv+"=1")
	var ids []syscall.SysProcIDMap
	for _, r := range theIDs {
		ids = append(ids, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Size)})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{},
	}
	cmd.Args = append(cmd.Args, "-test.v", "-test.timeout=10m") // a suite sleeps, and a machine may be busy
	text, err := cmd.CombinedOutput()
	if err != nil && len(text) == 0 {
		requireChildren(t, err)
	}
	out := chatter.ReplaceAllString(string(text), "")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, name := range namespaceTests {
		if !strings.Contains(out, "--- PASS: "+name+" (") {
			t.Errorf("%s did not pass", name)
		}
	}
}

// namespaceTests are those that hold in a user namespace as well.
var namespaceTests = []string{
	"TestStacks", "TestRootDirectory", "TestBreakouts", "TestHostile", "TestWorld", "TestFSSuite",
	"TestSnapshotterSuite",
	"TestProvisional", "TestCheckFinds", "TestUnpackedOnce", "TestNothingLeft", "TestWriteAfterApply",
	"TestDirectoryForms",
	"TestDirectoryCopy", "TestDirectoryApply",
}

// chatter are the lines of a verbose test that no failure is explained by.
var chatter = regexp.MustCompile(
	`(?m)^(?:=== .*| *--- PASS: .*/.*| *log_hook\.go:.*| *testsuite\.go:\d+: (?:un)?mount .*)\n`)

// TestLabelsInNamespace: containerd, which was not told that Tank remaps ids there, has changed the owners itself.
func TestLabelsInNamespace(t *testing.T) {
	requireRoot(t)
	w := openWith(t, t.TempDir(), memory{}, &snapshot.Options{SyncDelay: -1, Unpack: unpack.Options{Confined: true}})
	sn := w.For(holder)
	layers := []layer.Pair{w.blobs.add(t, Tar(t, F("f", "1")))}
	top, err := extract(ctx, sn, w, layers, false, "ns")
	must(t, err)
	mounts, err := sn.Prepare(ctx, "key", top, idLabels("0:100000:65536", "0:100000:65536"))
	must(t, err)
	if len(mounts) != 1 || mounts[0].Type != "overlay" || !slices.Contains(mounts[0].Options, "userxattr") {
		t.Fatalf("mounts %v", mounts)
	}
	for _, o := range mounts[0].Options {
		if strings.HasPrefix(o, "uidmap") || strings.HasPrefix(o, "gidmap") {
			t.Errorf("mounts %v", mounts)
		}
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			var st unix.Stat_t
			must(t, unix.Lstat(upper, &st))
			if st.Uid != 0 || st.Gid != 0 {
				t.Errorf("the root directory belongs to %d:%d", st.Uid, st.Gid)
			}
		}
	}
}
