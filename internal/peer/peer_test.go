package peer_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/peer"
)

// dialed returns both ends of a connection.
func dialed(t *testing.T, network, address string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestCredentials(t *testing.T) {
	client, server := dialed(t, "unix", filepath.Join(t.TempDir(), "s"))
	for name, conn := range map[string]net.Conn{"client": client, "server": server} {
		cred, err := peer.Credentials(conn)
		if err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Geteuid() ||
			int(cred.Gid) != os.Getegid() {
			t.Errorf("%s: %+v, %v", name, cred, err)
		}
	}
}

func TestCredentialsWithoutUnixSocket(t *testing.T) {
	client, _ := dialed(t, "tcp", "127.0.0.1:0")
	pipe, other := net.Pipe()
	defer pipe.Close()
	defer other.Close()
	for name, conn := range map[string]net.Conn{"tcp": client, "pipe": pipe} {
		if cred, err := peer.Credentials(conn); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v", name, cred, err)
		}
	}
}
