package tank_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
)

// openEnv makes a new process of the test binary open or rebuild a root and print the error.
const openEnv = "TANK_TEST_OPEN"

// processKinds are the attributes of the processes that open roots, by name.
var processKinds = map[string]*syscall.SysProcAttr{
	"root":         {},
	"root no caps": {},
	"user 1000":    {Credential: &syscall.Credential{Uid: 1000, Gid: 1000}},
	"user 1001":    {Credential: &syscall.Credential{Uid: 1001, Gid: 1000}},
	"namespace":    namespaceOf([3]int{0, 1000, 1}, [3]int{1, 100000, 65536}),
	"more ids": namespaceOf([3]int{0, 1000, 1}, [3]int{1, 100000, 65536}, [3]int{65537, 165536, 1000},
		[3]int{70000, 300000, 5}),
	"fewer ids": namespaceOf([3]int{0, 1000, 1}, [3]int{1, 100000, 1000}),
	"other ids": namespaceOf([3]int{0, 1000, 1}, [3]int{1, 200000, 65536}),
	"one id":    namespaceOf([3]int{0, 1000, 1}),
}

// namespaceOf returns the attributes of a process that is root of a new user namespace. Each
// mapping is the first ID inside, the first ID outside, and the number of IDs.
func namespaceOf(ids ...[3]int) *syscall.SysProcAttr {
	var m []syscall.SysProcIDMap
	for _, r := range ids {
		m = append(m, syscall.SysProcIDMap{ContainerID: r[0], HostID: r[1], Size: r[2]})
	}
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
}

// TestModes opens roots as another user than the one that made them. Owners of files have a meaning
// only with the ID mappings under which they were written.
func TestModes(t *testing.T) {
	if os.Geteuid() != 0 {
		skipUnlessCI(t, "needs root, to act as other users")
	}
	exe := publicCopy(t)
	const namespace = "root of a user namespace, uids 0:1000:1,1:100000:65536, gids 0:1000:1,1:100000:65536"
	const oneID = "the one user of a user namespace, uids 0:1000:1, gids 0:1000:1"
	for _, row := range []struct {
		made, opened string
		want         string // part of the refusal, empty when there is none
	}{
		{"root", "root", ""},
		{"root", "user 1000", "belongs to another user: "},
		{"root", "namespace", "belongs to another user: "},
		{"root", "root no caps", "made by privileged, this process is root without CAP_SYS_ADMIN"},
		{"root no caps", "root no caps", ""},
		{"root no caps", "root", "made by root without CAP_SYS_ADMIN, this process is privileged"},
		{"user 1000", "user 1000", ""},
		{"user 1000", "user 1001", "belongs to another user: "},
		{"user 1000", "root", "made by uid 1000, this process is privileged"},
		{"user 1000", "one id", "made by uid 1000, this process is " + oneID},
		{"user 1000", "namespace", "made by uid 1000, this process is " + namespace},
		{"namespace", "namespace", ""},
		{"namespace", "more ids", ""},
		{"namespace", "fewer ids",
			"made by " + namespace + ", this process is root of a user namespace, uids 0:1000:1,1:100000:1000"},
		{"namespace", "other ids",
			"made by " + namespace + ", this process is root of a user namespace, uids 0:1000:1,1:200000:65536"},
		{"namespace", "one id", "made by " + namespace + ", this process is " + oneID},
		{"namespace", "root", "made by " + namespace + ", this process is privileged"},
		{"namespace", "user 1000", "made by " + namespace + ", this process is uid 1000"},
		{"one id", "one id", ""},
		{"one id", "user 1000", "made by " + oneID + ", this process is uid 1000"},
		{"one id", "namespace", "made by " + oneID + ", this process is " + namespace},
	} {
		t.Run(row.made+"/"+row.opened, func(t *testing.T) {
			base := publicDir(t)
			must(t, os.Chmod(base, 0o1777))
			root := filepath.Join(base, "root")
			if got := openAs(t, exe, row.made, "open", root); got != "" {
				t.Fatal(got)
			}
			// even a root without a database records which kind of process made it
			for _, what := range []string{"open", "rebuild", "open"} {
				got := openAs(t, exe, row.opened, what, root)
				if (got == "") != (row.want == "") || !strings.Contains(got, row.want) || got != "" &&
					!strings.HasSuffix(got, "failed precondition") {
					t.Errorf("%s: %q, want %q", what, got, row.want)
				}
			}
			if row.opened == "more ids" { // the root records these IDs from now on
				if got := openAs(t, exe, "namespace", "open", root); !strings.Contains(got, "70000:300000:5") {
					t.Errorf("opened with fewer IDs: %q", got)
				}
			}
		})
	}
}

// openAs opens or rebuilds the root in a process of the given kind and returns its error, or "".
func openAs(t *testing.T, exe, as, what, root string) string {
	t.Helper()
	cmd := exec.Command(exe, "-test.run=^TestModesChild$")
	cmd.Dir = filepath.Dir(root)
	cmd.Env = []string{openEnv + "=" + strings.Join([]string{as, what, root}, ";")}
	attr := *processKinds[as]
	cmd.SysProcAttr = &attr
	text, err := cmd.CombinedOutput()
	if err != nil && len(text) == 0 {
		skipUnlessCI(t, as+": "+err.Error())
	}
	answer, ok := strings.CutPrefix(strings.SplitN(string(text), "\n", 2)[0], "answer: ")
	if err != nil || !ok {
		t.Fatalf("%s: %v\n%s", as, err, text)
	}
	return answer
}

// TestModesChild is the child process of TestModes.
func TestModesChild(t *testing.T) {
	job := strings.SplitN(os.Getenv(openEnv), ";", 3)
	if len(job) < 3 {
		t.Skip("TestModes runs this test in a child process")
	}
	if job[0] == "root no caps" {
		dropSysAdmin(t)
	}
	var err error
	if job[1] == "rebuild" {
		_, err = tank.Rebuild(context.Background(), job[2], nil)
	} else {
		var tk *tank.Tank
		if tk, err = tank.Open(job[2], nil); err == nil {
			err = errors.Join(tk.Check(context.Background(), func(f tank.Fault) { t.Error(f) }), tk.Close())
		}
	}
	if err == nil {
		fmt.Println("answer: ")
		return
	}
	if !errdefs.IsFailedPrecondition(err) {
		t.Error("error of another class")
	}
	fmt.Println("answer:", err)
}

// dropSysAdmin drops CAP_SYS_ADMIN from the thread of this test. The root user of a container lacks
// it, too.
func dropSysAdmin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&header, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	must(t, unix.Capset(&header, &data[0]))
}

// publicCopy copies this binary to a path where every user may run it.
func publicCopy(t *testing.T) string {
	t.Helper()
	from, err := os.Open("/proc/self/exe")
	must(t, err)
	defer from.Close()
	exe := filepath.Join(publicDir(t), "test")
	to, err := os.OpenFile(exe, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(to, from)
	must(t, errors.Join(err, to.Close(), os.Chmod(exe, 0o755)))
	return exe
}

// publicDir returns a temporary directory that every user can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tank-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// skipUnlessCI skips a test that cannot run on this machine. In CI it fails the test.
func skipUnlessCI(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
