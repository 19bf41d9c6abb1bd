package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver"
)

// repairVersion is the first version of the protocol that has repairs.
const repairVersion = 3

// repairRequest asks for a repair. See pullRequest.
type repairRequest struct {
	tank.RepairOptions
	OwnHosts bool `json:"ownHosts,omitempty"`
}

func serveRepair(srv any, stream grpc.ServerStream) error {
	var first pullMessage
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if first.Repair == nil {
		return errgrpc.ToGRPC(fmt.Errorf("repair: no request: %w", errdefs.ErrInvalidArgument))
	}
	e, opts := srv.(*endpoint), first.Repair.RepairOptions
	if !first.Repair.OwnHosts {
		opts.HostsDir = e.hostsDir
	}
	return serveStream(stream, func(p *pullServer) (pullReply, error) {
		opts.Progress, opts.Log, opts.Credentials = p.event, p.line, p.credential
		res, err := e.svc.Repair(stream.Context(), &opts)
		return pullReply{Repaired: res}, err
	})
}

// Repair has the process mend what Check finds; see [tank.Service]. Of the hosts directory and the
// credentials, the process gets what the registries of the pulled images need. It returns
// errdefs.ErrNotImplemented if the process runs a version of Tank that has no repairs.
func (c *Client) Repair(ctx context.Context, opts *tank.RepairOptions) (*tank.RepairResult, error) {
	if c.version < repairVersion {
		return nil, cause.Mark(fmt.Errorf("repair: the owner of the root runs an older Tank, which has no repairs: "+
			"restart it: %w", errdefs.ErrNotImplemented), cause.Version, "")
	}
	if opts == nil {
		opts = &tank.RepairOptions{}
	}
	req := repairRequest{RepairOptions: *opts}
	h := hooks{what: "repair", log: opts.Log, progress: opts.Progress}
	if !opts.Offline {
		images, err := c.Images(ctx)
		if err != nil {
			return nil, err
		}
		if h.credentials, err = entrustAll(ctx, images, &req); err != nil {
			return nil, err
		}
	}
	var res *tank.RepairResult
	err := c.attend(ctx, func(ctx context.Context) error {
		last, err := c.stream(ctx, &description.Streams[1], pullMessage{Repair: &req}, h)
		if err == nil && last.Repaired == nil {
			err = fmt.Errorf("repair: not the answer to a repair: %w", errdefs.ErrFailedPrecondition)
		}
		res = last.Repaired
		return err
	})
	return res, err
}

// entrustAll does for the registries of all images what entrust does for one: it adds the hosts files to the
// request, and returns the client's answers to requests for credentials.
func entrustAll(ctx context.Context, images []tank.ImageInfo, req *repairRequest) (tank.Credentials, error) {
	files := map[string][]byte{}
	var registries, names []string
	for _, i := range images {
		ref, err := resolver.ParseReference(i.Ref)
		if err != nil || slices.Contains(registries, ref.Domain()) {
			continue
		}
		registries = append(registries, ref.Domain())
		one, _, err := entrust(ctx, i.Ref, &tank.PullOptions{HostsDir: req.HostsDir, HostsFiles: req.HostsFiles})
		if err != nil {
			return nil, err
		}
		names = append(names, hostNames(ref.Domain(), one.HostsFiles)...)
		maps.Copy(files, one.HostsFiles)
		req.OwnHosts = req.OwnHosts || one.OwnHosts
	}
	if len(files) > 0 {
		req.HostsFiles = files
	}
	return limited(req.Credentials, names), nil
}
