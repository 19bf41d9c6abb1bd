// Package admin carries a [tank.Service] over a unix socket: a program that owns a root serves it there,
// and other programs use it as if they owned the root. [Reach] does either, whichever is possible.
//
// The owner of a root has a socket named tank.sock in it; a daemon has another one at its address. The
// package owns the socket in the root while Reach owns that root, and nothing else on the disk.
//
// Its invariant: a client talks only to a process of uid 0, of its own user or of a user that it named. It
// sends only what one call needs: of the hosts directory the files for one registry, and credentials only
// for the hosts of that registry. It believes no path outside the root
// (docs/adr/0020-what-a-command-trusts.md).
//
// The surprising rule: the first exchange of a connection agrees on a version of the protocol, and programs
// of before that exchange had versions speak version 1. See docs/adr/0002-admin-endpoint.md.
package admin

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/encoding"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
)

// SocketName is the name of the socket in the root of the process that owns it.
const SocketName = "tank.sock"

// serviceName is the name of the gRPC service. It stays the same in all versions of the protocol, so that a
// client and a server can always agree on a version or report that they cannot.
const serviceName = "tank.admin.v1.Admin"

// The versions of the protocol. A client sends the range of versions that it speaks with its first request,
// which asks for the root. The server answers with the highest version that both speak.
//
// Version 1 is what programs speak that send no version. Version 2 has the same messages, and the versions.
// Version 3 has repairs as well.
const (
	oldestVersion = 1
	latestVersion = 3
)

// versions is the range of versions that one side speaks.
type versions struct{ oldest, latest int }

// spoken are the versions of this program.
var spoken = versions{oldestVersion, latestVersion}

// agree returns the highest version that both sides speak. If there is none, the error names the versions
// of both, and is of class errdefs.ErrNotImplemented.
func agree(client, owner versions) (int, error) {
	if v := min(client.latest, owner.latest); v >= max(client.oldest, owner.oldest) {
		return v, nil
	}
	return 0, cause.Mark(fmt.Errorf("admin protocol: the client speaks %s, the owner of the root %s: %w",
		client, owner, errdefs.ErrNotImplemented), cause.Version, "")
}

func (v versions) String() string {
	if v.oldest == v.latest {
		return fmt.Sprintf("version %d", v.latest)
	}
	return fmt.Sprintf("versions %d to %d", v.oldest, v.latest)
}

// rootRequest is the first request of a client. The zero value comes from a program that speaks version 1.
type rootRequest struct {
	Version int `json:"version,omitempty"` // the latest that the client speaks
	Oldest  int `json:"oldest,omitempty"`
}

func (r rootRequest) versions() versions {
	return versions{max(r.Oldest, 1), max(r.Version, 1)}
}

// rootReply answers it.
type rootReply struct {
	Root string `json:"root"`
	// Version is what both sides speak from now on. 0 comes from a program that speaks version 1.
	Version int `json:"version,omitempty"`
}

func (r rootReply) versions() versions {
	v := max(r.Version, 1)
	return versions{v, v}
}

type empty struct{}

type refRequest struct {
	Ref string `json:"ref"`
}

// releaseRequest asks for a release.
type releaseRequest struct {
	Holder string `json:"holder"`
	tank.ReleaseOptions
}

// pullRequest asks for a pull. It names no path: the process that owns the root opens no file that a client
// names.
type pullRequest struct {
	Ref string `json:"ref"`
	tank.PullOptions
	// OwnHosts is set by a client that has a hosts directory. HostsFiles then has all that concerns Ref;
	// without OwnHosts, the owner's hosts directory is used if there are no HostsFiles.
	OwnHosts bool `json:"ownHosts,omitempty"`
}

// codec is JSON, on the wire "application/grpc+tank-json": the endpoint needs no generated code.
type codec struct{}

func (codec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (codec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (codec) Name() string                       { return "tank-json" }

func init() { encoding.RegisterCodec(codec{}) }
