package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// specialLayers have everything for which the daemon needs a capability.
func specialLayers(t *testing.T) [][]Entry {
	t.Helper()
	hello, err := testProgram()
	if err != nil {
		t.Fatal(err)
	}
	device := func(kind byte, name string, major, minor int64) Entry {
		return entry(kind, name, 0o640, nil, []func(*Entry){owner(0, 6), func(e *Entry) {
			e.Devmajor, e.Devminor = major, minor
		}})
	}
	bottom := []Entry{
		dir("usr", 0o755), dir("usr/bin", 0o755), dir("dev", 0o755), dir("proc", 0o555), dir("sys", 0o555),
		dir("etc", 0o755), dir("closed", 0o000, owner(1000, 1000)), dir("sticky", 0o1777),
		dir("shared", 0o2775, owner(3, 4)),
		file("usr/bin/hello", 0o755, string(hello)),
		file("usr/bin/suid", 0o4755, "suid\n"), file("usr/bin/sgid", 0o2755, "sgid\n", owner(0, 9)),
		file("usr/bin/both", 0o6711, "both\n", owner(1000, 1001)),
		file("usr/bin/raw", 0o755, "capable\n", xattr("security.capability", netRaw)),
		file("etc/trusted", 0o600, "trusted\n", owner(5, 5), xattr("trusted.note", "kept"), xattr("user.note", "kept")),
		file("closed/file", 0o000, "closed\n", owner(1000, 1000)),
		dir("removed", 0o700), file("removed/x", 0o600, "x\n"), file("etc/removed", 0o600, "x\n"),
		device(tar.TypeChar, "dev/zero-like", 1, 5), device(tar.TypeBlock, "dev/loop-like", 7, 99),
		fifo("dev/fifo", 0o620, owner(61, 62)), symlink("usr/bin/link", "hello", owner(7, 8)),
	}
	top := []Entry{
		file(".wh.removed", 0, ""), file("etc/.wh.removed", 0, ""),
		hardlink("usr/bin/suid-too", "usr/bin/suid", 0o4755),
		device(tar.TypeChar, "dev/null-like", 1, 3),
	}
	return [][]Entry{bottom, top}
}

// TestUnit: with no more than the unit allows, the daemon gives containerd and its own commands the trees of images
// that have devices, set-id files, file capabilities and trusted attributes, and containers of them run.
func TestUnit(t *testing.T) {
	layers := specialLayers(t)
	want, err := ExpectedTree(layers)
	if err != nil {
		t.Fatal(err)
	}
	built, err := BuildImage(layers, helloConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, directory := range []bool{false, true} {
		t.Run(fmt.Sprintf("directory=%v", directory), func(t *testing.T) {
			t.Parallel()
			e := New(t)
			k, c, r := e.NewNodeAs(Setup{AsUnit: true, Directory: directory, Sequential: directory})
			checkConfined(t, k.Daemon())
			r.PushBuilt(built, "test/special:1")
			ref := TestRegistry + "/test/special:1"
			c.Pull(ref)
			mounted := c.Mount(ref)
			CheckTree(t, "containerd's", want, mounted)
			c.Unmount(mounted)
			if got := c.Run(ref, e.Name("hello")); got != helloText {
				t.Errorf("the container printed %q", got)
			}
			CheckTree(t, "the command's", want, k.Pull(r.Ref("test/special:1")))
			c.RemoveImage(ref)
			k.MustRun("rm", r.Ref("test/special:1"))
			k.MustRun("gc")
			if left := k.Leftovers(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// unitCapabilities is the mask of the seven capabilities that the daemon may have.
const unitCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SYS_ADMIN

// checkConfined checks that the process has the unit's capabilities, and a filter of system calls.
func checkConfined(t *testing.T, p *Process) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		fmt.Sprintf("CapBnd:\t%016x", unitCapabilities), fmt.Sprintf("CapEff:\t%016x", unitCapabilities),
		"NoNewPrivs:\t1", "Seccomp:\t2", "Umask:\t0077",
	} {
		if !strings.Contains(string(status), line+"\n") {
			t.Errorf("the daemon has not %q:\n%s", line, status)
		}
	}
}

// TestSandbox: each restriction of the unit is in force in the other tests' daemon.
func TestSandbox(t *testing.T) {
	e := New(t)
	requireProgram(t, "python3")
	program := "import ctypes,os; c=ctypes.CDLL(None,use_errno=True)\n" +
		"def tried(r): print(ctypes.get_errno() if r==-1 else 0)\n"
	rows := []struct {
		name, program string
		want          unix.Errno
	}{
		{"a file may be owned by others", "open('f','w').close(); tried(c.chown(b'f',5,5))", 0},
		{"a device may be made", "tried(c.mknod(b'd',0o020600,0x103))", 0},
		{"a trusted attribute may be set", "open('g','w').close(); tried(c.setxattr(b'g',b'trusted.x',b'1',1,0))", 0},
		{"SystemCallFilter: no mount", "tried(c.mount(b'none',b'/mnt',b'tmpfs',0,None))", unix.EPERM},
		{"SystemCallFilter: no chroot", "tried(c.chroot(b'/'))", unix.EPERM},
		{"SystemCallFilter: no key", "tried(c.syscall(250,0,0))", unix.EPERM},
		{"CapabilityBoundingSet: no raw socket", "tried(c.socket(2,3,1))", unix.EPERM},
		{"RestrictNamespaces: no unshare", "tried(c.unshare(0x00020000))", unix.EPERM},
		{"RestrictAddressFamilies: no netlink", "tried(c.socket(16,3,0))", unix.EAFNOSUPPORT},
		{"RestrictAddressFamilies: IPv4", "tried(c.socket(2,1,0))", 0},
		{"RestrictRealtime: no realtime", "p=ctypes.c_int(1); tried(c.sched_setscheduler(0,1,ctypes.byref(p)))",
			unix.EPERM},
		{"LockPersonality: no other", "tried(c.personality(0x0400000))", unix.EPERM},
		{
			"MemoryDenyWriteExecute: no code is written",
			"c.mmap.restype=ctypes.c_long; tried(c.mmap(None,ctypes.c_size_t(4096),7,0x22,-1,0))", unix.EPERM,
		},
		{"NoNewPrivileges", "tried(c.prctl(39,0,0,0,0)-1)", 0},
		{"UMask", "os.close(os.open('m',os.O_CREAT,0o666)); print(os.stat('m').st_mode&0o077)", 0},
	}
	for _, row := range rows {
		program += row.program + "\n"
	}
	got := strings.Fields(e.MustRun(append(e.unitArgs(), "python3", "-c", program)...))
	if len(got) != len(rows) {
		t.Fatalf("%d rows answer %q", len(rows), got)
	}
	for i, row := range rows {
		if want := fmt.Sprint(int(row.want)); got[i] != want {
			t.Errorf("%s: errno %s, want %s", row.name, got[i], want)
		}
	}
	t.Run("the wrapper knows every setting", func(t *testing.T) {
		e.Use(t)
		b, err := os.ReadFile(unitFile())
		if err != nil {
			t.Fatal(err)
		}
		other := e.Path("other.service")
		changed := regexp.MustCompile(`(?m)^NoNewPrivileges=`).ReplaceAll(b,
			[]byte("ProtectHostname=yes\nNoNewPrivileges="))
		if err := os.WriteFile(other, changed, 0o644); err != nil {
			t.Fatal(err)
		}
		if r := e.Run(e.unitArgs()[0], other, "true"); r.Code == 0 || !strings.Contains(r.Stderr, "ProtectHostname") {
			t.Errorf("%s", r)
		}
	})
}
