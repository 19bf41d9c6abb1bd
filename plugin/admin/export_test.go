package admin

import (
	"context"

	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
)

// DialVersions is Dial for a client with another range of protocol versions.
func DialVersions(ctx context.Context, path string, oldest, latest int) (*Client, error) {
	return dialer{path: path, speaks: versions{oldest, latest}}.dial(ctx)
}

// RegisterVersions is Register for an owner with another range of protocol versions.
func RegisterVersions(to grpc.ServiceRegistrar, svc tank.Service, oldest, latest int) {
	to.RegisterService(&description, &endpoint{svc, "", versions{oldest, latest}})
}

// VersionOf returns the version that a client and the owner agreed on.
func VersionOf(c *Client) int { return c.version }
