package plugin

import (
	"context"
	"encoding/json"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
)

// Admin is what Tank's commands ask of the process that owns a root.
type Admin interface {
	// Root returns the root's absolute path.
	Root() string
	// Pull pulls an image for a client.
	Pull(ctx context.Context, req PullRequest, client PullClient) (*PulledImage, error)
	Images(ctx context.Context) ([]ImageInfo, error)
	// Inspect returns all that is recorded of an image; errdefs.ErrNotFound when there is none.
	Inspect(ctx context.Context, ref string) (json.RawMessage, error)
	Remove(ctx context.Context, ref string) error
	GC(ctx context.Context) (Reclaimed, error)
	Check(ctx context.Context) ([]Fault, error)
	Holders(ctx context.Context) ([]Holder, error)
	// Release gives up all that a holder holds, and tells what that was. errdefs.ErrNotFound when there is none,
	// errdefs.ErrFailedPrecondition while it is used.
	Release(ctx context.Context, req ReleaseRequest) (Holder, error)
}

// PullRequest is one pull. It names no path: the process that owns the root opens nothing that a client names.
type PullRequest struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"`
	Offline  bool   `json:"offline,omitempty"`
	Refresh  bool   `json:"refresh,omitempty"`
	NoRootfs bool   `json:"noRootfs,omitempty"`
	NoSync   bool   `json:"noSync,omitempty"`
	Plain    bool   `json:"plainHTTP,omitempty"`
	// HostsFiles are the files of the client's hosts directory, by path relative to it.
	HostsFiles map[string][]byte `json:"hostsFiles,omitempty"`
	// OwnHosts is set by a client that has a hosts directory, of which HostsFiles is all that concerns Ref. Without it
	// the owner's own directory counts when there are no HostsFiles.
	OwnHosts bool `json:"ownHosts,omitempty"`
}

// PullClient is who a pull is for. The functions may be called by several goroutines at once.
type PullClient struct {
	// Report is told how far the pull is. nil: nobody is told.
	Report func(Progress)
	// HostsDir is the hosts directory of a client in this process. A remote one sends HostsFiles.
	HostsDir string
	// Credentials are the client's own: it reads its files and runs its helpers itself. nil: anonymous.
	Credentials func(ctx context.Context, host string) (Credential, error)
}

// Credential is what a registry knows its user by. The zero value is anonymous.
type Credential struct {
	Username      string
	Password      string
	IdentityToken string
	RegistryToken string
}

// Progress is how far the download of one blob is, or a line of text.
type Progress struct {
	Line   string `json:"line,omitempty"`
	Digest string `json:"digest,omitempty"`
	Offset int64  `json:"offset,omitempty"` // bytes
	Total  int64  `json:"total,omitempty"`  // bytes
	Done   bool   `json:"done,omitempty"`
	Cached bool   `json:"cached,omitempty"`
}

// PulledImage is what `pull --json` prints: its names are a contract.
type PulledImage struct {
	Ref      string          `json:"ref"`
	Digest   string          `json:"digest"`
	Manifest string          `json:"manifest"`
	Rootfs   string          `json:"rootfs,omitempty"`
	Config   json.RawMessage `json:"config"`
	Cached   bool            `json:"cached"`
}

// ImageInfo is one pulled platform of an image.
type ImageInfo struct {
	Ref      string    `json:"ref"`
	Digest   string    `json:"digest"`
	Manifest string    `json:"manifest,omitempty"`
	Platform string    `json:"platform,omitempty"`
	Rootfs   string    `json:"rootfs,omitempty"`
	Size     int64     `json:"size"` // bytes of its blobs
	Untagged bool      `json:"untagged,omitempty"`
	Created  time.Time `json:"created"`
}

// Reclaimed is what a collection took away.
type Reclaimed struct {
	Images    int   `json:"images"`
	Blobs     int   `json:"blobs"`
	Ingests   int   `json:"ingests"`
	Layers    int   `json:"layers"`
	Rootfs    int   `json:"rootfs"`
	Snapshots int   `json:"snapshots"`
	Bytes     int64 `json:"bytes"` // freed on the disk
	// Kept lists files that stay because of a flag such as chattr +i; "" when there are none.
	Kept string `json:"kept,omitempty"`
	// Unfinished are the holders that keep unfinished pulls.
	Unfinished []Unfinished `json:"unfinished,omitempty"`
}

// Unfinished is a holder that keeps an unfinished pull.
type Unfinished struct {
	Holder  string `json:"holder"`
	Bytes   int64  `json:"bytes"` // that its release would free
	Running bool   `json:"running,omitempty"`
}

// Fault is something that check found.
type Fault struct {
	What    string `json:"what"` // blob, layer, rootfs, ...
	Name    string `json:"name"`
	Message string `json:"message"`
}

// Holder is a name that keeps things alive, and what it keeps. `holders --json` prints it: its names are a contract.
type Holder struct {
	Holder    string `json:"holder"`
	Blobs     int    `json:"blobs"`
	Ingests   int    `json:"ingests"` // unfinished downloads
	Layers    int    `json:"layers"`
	Rootfs    int    `json:"rootfs"`
	Snapshots int    `json:"snapshots"`
	Bytes     int64  `json:"bytes"`           // that all these take on the disk
	Alone     int64  `json:"alone"`           // of these, what nobody else keeps
	Freed     int64  `json:"freed,omitempty"` // bytes that its release freed
	Running   bool   `json:"running,omitempty"`
	// Database, Seen and Connected tell of the containerd that acts for the holder: the path of its database, when it was
	// connected last, and whether it is now.
	Database  string    `json:"database,omitempty"`
	Seen      time.Time `json:"seen,omitzero"`
	Connected bool      `json:"connected,omitempty"`
}

// ReleaseRequest names a holder to release.
type ReleaseRequest struct {
	Holder string `json:"holder"`
	// Force releases containerd although it is connected or its snapshots are mounted.
	Force bool `json:"force,omitempty"`
	// To is the holder of the containerd that gets what Holder keeps. "": what Holder keeps is given up.
	To string `json:"to,omitempty"`
}

// codec is JSON, on the wire "application/grpc+tank-json": the admin endpoint needs no generated code.
type codec struct{}

func (codec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (codec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (codec) Name() string                       { return "tank-json" }

func init() { encoding.RegisterCodec(codec{}) }

const serviceName = "tank.admin.v1.Admin"

type empty struct{}

type rootReply struct {
	Root string `json:"root"`
}

type refRequest struct {
	Ref string `json:"ref"`
}

// adminService describes the methods to gRPC. Check and Images answer in one message: a root has thousands of them at
// the most.
var adminService = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*Admin)(nil),
	Methods: []grpc.MethodDesc{
		unary("Root", func(a Admin, _ context.Context, _ *empty) (any, error) { return rootReply{a.Root()}, nil }),
		unary("Images", func(a Admin, ctx context.Context, _ *empty) (any, error) { return a.Images(ctx) }),
		unary("Inspect", func(a Admin, ctx context.Context, r *refRequest) (any, error) { return a.Inspect(ctx, r.Ref) }),
		unary("Remove", func(a Admin, ctx context.Context, r *refRequest) (any, error) { return empty{}, a.Remove(ctx, r.Ref) }),
		unary("GC", func(a Admin, ctx context.Context, _ *empty) (any, error) { return a.GC(ctx) }),
		unary("Check", func(a Admin, ctx context.Context, _ *empty) (any, error) { return a.Check(ctx) }),
		unary("Holders", func(a Admin, ctx context.Context, _ *empty) (any, error) { return a.Holders(ctx) }),
		unary("Release", func(a Admin, ctx context.Context, r *ReleaseRequest) (any, error) { return a.Release(ctx, *r) }),
	},
	Streams: []grpc.StreamDesc{{StreamName: "Pull", Handler: servePull, ServerStreams: true, ClientStreams: true}},
}

// unary is a method with one request and one answer.
func unary[Req any](name string, call func(Admin, context.Context, *Req) (any, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, dec func(any) error, via grpc.UnaryServerInterceptor) (any, error) {
			req := new(Req)
			if err := dec(req); err != nil {
				return nil, err
			}
			do := func(ctx context.Context, req any) (any, error) {
				v, err := call(srv.(Admin), ctx, req.(*Req))
				return v, toStatus(err)
			}
			if via == nil {
				return do(ctx, req)
			}
			return via(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + serviceName + "/" + name}, do)
		},
	}
}

// Root returns the root that the process told of when it was dialed.
func (c *Client) Root() string { return c.root }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Images lists what was pulled.
func (c *Client) Images(ctx context.Context) (images []ImageInfo, err error) {
	err = c.call(ctx, "Images", empty{}, &images)
	return images, err
}

// Inspect returns all that is recorded of an image.
func (c *Client) Inspect(ctx context.Context, ref string) (record json.RawMessage, err error) {
	err = c.call(ctx, "Inspect", refRequest{ref}, &record)
	return record, err
}

// Remove forgets an image.
func (c *Client) Remove(ctx context.Context, ref string) error {
	return c.call(ctx, "Remove", refRequest{ref}, &empty{})
}

// GC has what nobody holds deleted.
func (c *Client) GC(ctx context.Context) (r Reclaimed, err error) {
	err = c.call(ctx, "GC", empty{}, &r)
	return r, err
}

// Check has the root checked.
func (c *Client) Check(ctx context.Context) (faults []Fault, err error) {
	err = c.call(ctx, "Check", empty{}, &faults)
	return faults, err
}

// Holders lists who holds what.
func (c *Client) Holders(ctx context.Context) (holders []Holder, err error) {
	err = c.call(ctx, "Holders", empty{}, &holders)
	return holders, err
}

// Release has all given up that a holder holds.
func (c *Client) Release(ctx context.Context, req ReleaseRequest) (released Holder, err error) {
	err = c.call(ctx, "Release", req, &released)
	return released, err
}
