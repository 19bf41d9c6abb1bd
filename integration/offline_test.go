package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var networkSocket = regexp.MustCompile(
	`socket\((AF_INET|AF_INET6|AF_NETLINK)\b|sa_family=(AF_INET|AF_INET6|AF_NETLINK)\b`)

// TestOffline: with the registry stopped, --offline answers and opens no network socket.
func TestOffline(t *testing.T) {
	eachImage(t, func(t *testing.T, f Fixture) {
		requireProgram(t, "strace")
		e := New(t)
		r := e.NewRegistry()
		r.Push(f.Layout, f.Ref, f.Name)
		k := e.NewTank()
		ref := r.Ref(f.Name)
		root := k.Pull(ref)
		r.Stop()
		offline := func(want int, ref string) Result {
			t.Helper()
			trace := e.Path("trace")
			argv := append([]string{"strace", "-f", "-e", "trace=socket,connect", "-o", trace},
				k.Args("pull", "--offline", "--progress", "none", ref)...)
			res := e.Run(argv...)
			if res.Code != want {
				t.Errorf("want exit %d: %s", want, res)
			}
			b, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(b), "+++ exited with") {
				t.Fatalf("strace saw no process end: %s", b)
			}
			for line := range strings.Lines(string(b)) {
				if networkSocket.MatchString(line) {
					t.Errorf("--offline opens a network socket: %s", line)
				}
			}
			return res
		}
		if res := offline(0, ref); res.Stdout != root+"\n" {
			t.Errorf("printed %q, not %q", res.Stdout, root)
		}
		CheckTree(t, "pull --offline", f.Tree, root)
		missing := r.Ref("test/missing:1")
		if res := offline(3, missing); !strings.Contains(res.Stderr, "missing:1") || res.Stdout != "" {
			t.Errorf("a missing image is not named on stderr alone: %s", res)
		}

		k.Serve()
		if res := offline(0, ref); res.Stdout != root+"\n" {
			t.Errorf("through the daemon: printed %q, not %q", res.Stdout, root)
		}
		offline(3, missing)
		k.Daemon().Stop()

		k.broken = true
		if err := os.Remove(blobFile(k.Root, f.Image.Config.Digest)); err != nil {
			t.Fatal(err)
		}
		if res := offline(3, ref); !strings.Contains(res.Stderr, f.Image.Config.Digest.Encoded()[:12]) {
			t.Errorf("the missing blob is not named: %s", res)
		}
	})
}
