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

// theIDs maps the ids of the tests' user namespace in the usual way: to the user that created it, and to that user's
// subordinate ids.
var theIDs = idmap.Map{{Container: 0, Host: nobody, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}

// inNamespace reports whether this process is the child of TestNamespace or a child of that child. It is root only in a
// user namespace.
func inNamespace() bool { return os.Getenv(namespaceEnv) != "" }

// namespaceEnv is inherited by the children of the child of TestNamespace.
const namespaceEnv = "SNAPSHOT_TEST_NAMESPACE"

// rights returns the unpack options that match the rights of this process.
func rights() unpack.Options {
	if inNamespace() {
		return unpack.Options{Confined: true, UIDs: theIDs, GIDs: theIDs}
	}
	return unpack.Options{}
}

var namespaceLacks = regexp.MustCompile(` (?:trusted\.|security\.(?:[^c]|c[^a]))\S*="(?:[^"\\]|\\.)*"`)

// confined converts the expected tree of root into that of root in a user namespace. It leaves out devices and the
// attributes that such a root cannot write.
func confined(lines []string) (out []string) {
	for _, l := range lines {
		_, rest, _ := strings.Cut(l, " ")
		if !strings.HasPrefix(rest, "char") && !strings.HasPrefix(rest, "block") {
			out = append(out, namespaceLacks.ReplaceAllString(l, ""))
		}
	}
	return out
}

// TestNamespace runs the tests in namespaceTests again, as root of a user namespace with its own mounts. There, layers
// are marked with user.overlay.* attributes and mounted with userxattr.
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
	cmd.Args = append(cmd.Args, "-test.v", "-test.timeout=10m") // a suite sleeps, and the machine may be busy
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

// namespaceTests are the tests that must also pass in a user namespace.
var namespaceTests = []string{
	"TestStacks", "TestRootDirectory", "TestBreakouts", "TestHostile", "TestWorld", "TestFSSuite",
	"TestSnapshotterSuite",
	"TestProvisional", "TestCheckFinds", "TestUnpackedOnce", "TestNothingLeft", "TestWriteAfterApply",
	"TestDirectoryForms",
	"TestDirectoryCopy", "TestDirectoryApply",
}

// chatter matches lines of verbose output that do not help to explain a failure.
var chatter = regexp.MustCompile(
	`(?m)^(?:=== .*| *--- PASS: .*/.*| *log_hook\.go:.*| *testsuite\.go:\d+: (?:un)?mount .*)\n`)

// TestLabelsInNamespace prepares a snapshot with id labels in a user namespace. Tank does not announce there that it
// remaps ids, so containerd changes the owners itself, and the mounts must not remap them once more.
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
