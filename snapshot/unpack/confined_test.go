package unpack_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// theIDs maps the ids of the tests' user namespace in the usual way: to the user that created it, and to that user's
// subordinate ids.
var theIDs = idmap.Map{{Container: 0, Host: nobody, Size: 1}, {Container: 1, Host: 100000, Size: 65536}}

// namespaceOf returns the attributes that start a process as root of a new user namespace with these ids.
func namespaceOf(ids idmap.Map) *syscall.SysProcAttr {
	var m []syscall.SysProcIDMap
	for _, r := range ids {
		m = append(m, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Size)})
	}
	return &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: m, GidMappings: m, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
}

// fatalTB is a testing.TB for the helper functions in a process that runs no test. It panics on failure.
type fatalTB struct{ testing.TB }

func (fatalTB) Helper()                           {}
func (fatalTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (fatalTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

var namespaceLacks = regexp.MustCompile(` (?:trusted\.|security\.(?:[^c]|c[^a]))\S*="(?:[^"\\]|\\.)*"`)

// confined converts the expected tree of root into that of root in a user namespace. A whiteout replaces every
// device, so that it hides lower files at that path. The attributes that such a root cannot write are left out.
func confined(lines []string) (out []string) {
	marked := map[string]bool{} // directories with whiteouts
	for _, l := range lines {
		name, rest, _ := strings.Cut(l, " ")
		if strings.HasPrefix(rest, "char") || strings.HasPrefix(rest, "block") {
			marked[path.Dir(name)] = true
		}
	}
	if root := ". dir @0"; marked["."] && !strings.HasPrefix(lines[0], ". ") {
		lines = append([]string{root}, lines...)
	}
	for _, l := range lines {
		name, rest, _ := strings.Cut(l, " ")
		switch {
		case strings.HasPrefix(rest, "char"), strings.HasPrefix(rest, "block"):
			l = name + " whiteout"
		case marked[name]:
			l += " origin"
		}
		out = append(out, namespaceLacks.ReplaceAllString(l, ""))
	}
	return out
}

// capabilityFor returns a file capability that names the root user of its namespace.
func capabilityFor(root uint32) string {
	v3 := []byte(capability)
	v3[3] = 3
	return string(binary.LittleEndian.AppendUint32(v3, root))
}

// aclFor returns an ACL that also lets one user (tag 2) or group (tag 8) read.
func aclFor(tag byte, id uint32) string {
	b := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff")
	b = append(b, tag, 0, 4, 0)
	b = binary.LittleEndian.AppendUint32(b, id)
	if tag == 2 {
		return string(b) + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" +
			"\x20\x00\x00\x00\xff\xff\xff\xff"
	}
	return "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		string(b[12:]) + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
}

// TestUnmappedIDs extracts ids that a user namespace does not map, in every place where a layer can name an id.
func TestUnmappedIDs(t *testing.T) {
	for _, row := range []struct {
		testName string
		item     u.Item
		want     string // part of the error as root of the namespace; empty: no error
		user     string // the expected tree of an ordinary user
	}{
		{"uid", u.F("f", "").Owner(5, 0), "uid 5 has no place in this user namespace, which maps 0:1000:1 (give its " +
			"user more ids in /etc/subuid)", `f file ""`},
		{"gid", u.F("f", "").Owner(0, 5), "gid 5 has no place in this user namespace, which maps 0:1000:1 (give its " +
			"user more ids in /etc/subgid)", `f file ""`},
		{"of the root directory", u.D("./").Owner(5, 0), `tar entry "./": uid 5`, ". dir"},
		{"of a symlink", u.S("f", "t").Owner(5, 0), "uid 5", "f symlink -> t"},
		{"of a device, which is left out", u.C("f", 1, 3).Owner(5, 0), "", ". dir @0 origin\nf whiteout"},
		{"user in an ACL", u.F("f", "").Xattr("system.posix_acl_access", aclFor(2, 5)), "uid 5", `f file ""`},
		{"group in an ACL", u.F("f", "").Xattr("system.posix_acl_access", aclFor(8, 5)), "gid 5", `f file ""`},
		{"user in a default ACL", u.D("f").Xattr("system.posix_acl_default", aclFor(2, 5)), "uid 5", "f dir"},
		{"root of a capability", u.F("f", "").Xattr("security.capability", capabilityFor(5)), "uid 5", `f file ""`},
	} {
		t.Run(row.testName, func(t *testing.T) {
			ids := idmap.Map{{Container: 0, Host: 1000, Size: 1}}
			raw := u.Tar(t, row.item)
			confined := &unpack.Options{Confined: true, UIDs: ids, GIDs: ids}
			_, err := unpack.Extract(context.Background(), emptyDir(t), bytes.NewReader(raw), confined)
			switch {
			case row.want == "" && err == nil:
			case row.want == "" || !errdefs.IsFailedPrecondition(err) || errors.Is(err, stream.ErrInvalidLayer) ||
				!strings.Contains(err.Error(), row.want):
				t.Errorf("error %v, want %q", err, row.want)
			}
			dir := emptyDir(t)
			unprivileged := &unpack.Options{Unprivileged: true, UIDs: ids, GIDs: ids}
			_, err = unpack.Extract(context.Background(), dir, bytes.NewReader(raw), unprivileged)
			must(t, err)
			own := fmt.Sprintf(" %d:%d", os.Geteuid(), os.Getegid())
			got := strings.ReplaceAll(strings.Join(withoutOwner(u.List(t, dir.Name())), "\n"), own, "")
			if got != row.user {
				t.Errorf("as an ordinary user %q, want %q", got, row.user)
			}
		})
	}
}

func emptyDir(t *testing.T) *os.File {
	t.Helper()
	return openDir(t, t.TempDir())
}

// inNamespace reports whether this process is the child of TestNamespace.
func inNamespace() bool { return os.Getenv(namespaceEnv) != "" }

const namespaceEnv = "UNPACK_TEST_NAMESPACE"

// TestNamespace runs tests of this binary again, as root of a user namespace with its own mounts.
func TestNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to map ids")
	}
	base := publicTempDir(t)
	must(t, os.Chown(base, nobody, nobody))
	cmd := again(t, "-test.v", "-test.run=^(TestOverlay|TestProcessIDMaps|TestOpaqueAndWhiteout|TestSetAttrs)$")
	cmd.Env = append(cmd.Env, namespaceEnv+"=1", "TMPDIR="+base)
	cmd.SysProcAttr = namespaceOf(theIDs)
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	text, err := cmd.CombinedOutput()
	if err != nil && len(text) == 0 {
		skipOrFail(t, "user namespace: "+err.Error())
	}
	if err != nil || strings.Contains(string(text), "--- SKIP") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestIDMap(t *testing.T) {
	for _, s := range []string{"", "0", "0:1", "0:1:0", "0:1:2:3", "a:b:c", "0:0:4294967296", "-1:0:1", "0:0:1,",
		",0:0:1", "0:0:1 "} {
		if m, err := idmap.Parse(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, %v", s, m, err)
		}
	}
	m, err := idmap.Parse("0:1000:1,1:100000:65536")
	must(t, err)
	if m.String() != "0:1000:1,1:100000:65536" || m.Len() != 65537 {
		t.Errorf("%s of %d", m, m.Len())
	}
	for id, want := range map[uint32]int64{0: 1000, 1: 100000, 65536: 165535, 65537: -1, 4294967295: -1} {
		host, ok := m.Host(id)
		if ok != (want >= 0) || ok && int64(host) != want || m.Has(id) != ok {
			t.Errorf("%d: %d, %v, want %d", id, host, ok, want)
		}
	}
	if all := idmap.Map(nil); !all.Has(4294967294) || all.Len() < 1<<31 {
		t.Error("a nil map does not contain all ids")
	}
	for _, row := range []struct {
		other string
		want  bool
	}{
		{"0:1000:1", true}, {"1:100000:65536", true}, {"5:100004:10", true}, {"0:1000:1,1:100000:65536", true},
		{"0:1000:2", false}, {"1:100000:65537", false}, {"0:1001:1", false}, {"5:100005:10", false},
		{"70000:1:1", false},
	} {
		other, err := idmap.Parse(row.other)
		must(t, err)
		if m.Includes(other) != row.want {
			t.Errorf("includes %s: %v", row.other, !row.want)
		}
	}
}

// TestProcessIDMaps also runs in a user namespace, through TestNamespace.
func TestProcessIDMaps(t *testing.T) {
	uids, gids, err := idmap.Process()
	must(t, err)
	if !uids.Has(uint32(os.Geteuid())) || !gids.Has(uint32(os.Getegid())) {
		t.Errorf("the maps lack the ids of this process: uids %v, gids %v", uids, gids)
	}
	if inNamespace() && (uids.String() != "0:65534:1,1:100000:65536" || gids.String() != uids.String()) {
		t.Errorf("uids %v, gids %v", uids, gids)
	}
}
