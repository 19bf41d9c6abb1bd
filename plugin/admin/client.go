package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/socket"
)

// ErrSilent is the error of a call to a process that does not answer because it is stopped or hangs. A busy
// process still answers the question for its root. Its class is errdefs.ErrDeadlineExceeded.
var ErrSilent = cause.Mark(fmt.Errorf("the process does not answer: it is stopped or hangs: %w",
	context.DeadlineExceeded), cause.Silent, "")

// A server answers the question for its root in a goroutine that waits for nothing. A process is silent if
// it leaves two of these questions unanswered. One is not enough, because this process itself may have been
// stopped meanwhile.
const (
	askEvery    = 500 * time.Millisecond // while a call runs
	answersSoon = 2 * time.Second
	questions   = 2
)

// Client is the service of a root that another process owns.
type Client struct {
	conn    *grpc.ClientConn
	dialer  dialer
	root    string
	version int // of the protocol
}

var _ tank.Service = (*Client)(nil)

// DialOptions of Dial. nil means the zero value.
type DialOptions struct {
	// Owners are the users whose processes may answer, beside uid 0 and this process's own user. nil: no
	// others may.
	Owners []uint32
}

// Dial connects to a socket, however long its path is, and agrees with the process there on a version of
// the protocol. opts may be nil.
//
// It returns errdefs.ErrUnavailable if no process listens, errdefs.ErrPermissionDenied if the process
// belongs to another user than opts allow, errdefs.ErrNotImplemented if the two programs have no version of
// the protocol in common, and [ErrSilent] if the process does not answer.
func Dial(ctx context.Context, path string, opts *DialOptions) (*Client, error) {
	if opts == nil {
		opts = &DialOptions{}
	}
	return dialer{path, opts.Owners, spoken}.dial(ctx)
}

// dialer makes connections to one socket.
type dialer struct {
	path   string
	owners []uint32 // see DialOptions
	speaks versions
}

func (d dialer) dial(ctx context.Context) (*Client, error) {
	fail := func(err error) (*Client, error) {
		err = fmt.Errorf("socket %s: %w", d.path, err)
		if errdefs.IsPermissionDenied(err) {
			err = untrusted(err)
		}
		return nil, err
	}
	first, err := d.connect(ctx)
	if err != nil {
		return fail(err)
	}
	var once sync.Once
	conn, err := grpc.NewClient("passthrough:///tank", // a path could be parsed as a URL
		grpc.WithContextDialer(func(ctx context.Context, _ string) (conn net.Conn, err error) {
			once.Do(func() { conn = first })
			if conn != nil {
				return conn, nil
			}
			return d.connect(ctx)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.CallContentSubtype(codec{}.Name()), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		first.Close()
		return fail(err)
	}
	c := &Client{conn: conn, dialer: d}
	if err := c.ask(ctx); err != nil {
		once.Do(func() { first.Close() }) // gRPC never used it
		return fail(errors.Join(err, conn.Close()))
	}
	return c, nil
}

// connect connects to a process whose user check accepts.
func (d dialer) connect(ctx context.Context) (net.Conn, error) {
	dir, name := filepath.Split(d.path)
	path, release, err := socket.Path(filepath.Clean(dir), name)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, questions*answersSoon)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			if err := d.check(conn); err != nil {
				conn.Close()
				return nil, err
			}
			return conn, nil
		case errors.Is(err, unix.EACCES):
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
		case !errors.Is(err, unix.EAGAIN): // EAGAIN: the queue of connections is full; a running process empties it
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ErrSilent
		}
	}
}

// check refuses a process of any other user, which must not get this user's passwords or return paths to it.
func (d dialer) check(conn net.Conn) error {
	cred, err := peer.Credentials(conn)
	if err != nil {
		return err
	}
	for _, uid := range append([]uint32{0, uint32(os.Geteuid())}, d.owners...) {
		if cred.Uid == uid {
			return nil
		}
	}
	return fmt.Errorf("the process there belongs to uid %d, which may not answer uid %d: %w", cred.Uid, os.Geteuid(),
		errdefs.ErrPermissionDenied)
}

// ask asks the process for its root. The first answer decides the version of the protocol. It returns
// ErrSilent if the process does not answer.
func (c *Client) ask(ctx context.Context) error {
	v := c.dialer.speaks
	for range questions {
		var reply rootReply
		trying, cancel := context.WithTimeout(ctx, answersSoon)
		err := c.invoke(trying, "Root", rootRequest{Version: v.latest, Oldest: v.oldest}, &reply)
		late := trying.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err != nil && late:
			continue
		case err != nil:
			return err
		case !filepath.IsAbs(reply.Root):
			return fmt.Errorf("root %q: not an absolute path: %w", reply.Root, errdefs.ErrFailedPrecondition)
		case c.root == "":
			c.root = reply.Root
			c.version, err = agree(v, reply.versions())
			return err
		}
		return nil
	}
	return ErrSilent
}

// attend runs a call, and cancels it when the process no longer answers questions. The call itself may take
// any time.
func (c *Client) attend(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		tick := time.NewTicker(askEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := c.ask(ctx); errors.Is(err, ErrSilent) {
				cancel(ErrSilent)
				return
			}
		}
	}()
	err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), ErrSilent) {
		return ErrSilent
	}
	return err
}

func (c *Client) invoke(ctx context.Context, method string, req, reply any) error {
	return native(c.conn.Invoke(ctx, "/"+serviceName+"/"+method, req, reply))
}

func (c *Client) call(ctx context.Context, method string, req, reply any) error {
	return c.attend(ctx, func(ctx context.Context) error { return c.invoke(ctx, method, req, reply) })
}

// alive reports whether the process still answers, so that an error which it returned is its answer and not
// its end.
func (c *Client) alive(ctx context.Context) bool {
	other, err := c.dialer.dial(ctx)
	if err != nil {
		return false
	}
	other.Close()
	return true
}

// Serves reports whether root is the root of the process.
func (c *Client) Serves(root string) bool {
	if root == c.root {
		return true
	}
	x, errX := os.Stat(root)
	y, errY := os.Stat(c.root)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// Root returns the root of the process, as it was when the client connected.
func (c *Client) Root() string { return c.root }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Images lists the pulled images; see [tank.Service].
func (c *Client) Images(ctx context.Context) (images []tank.ImageInfo, err error) {
	err = c.call(ctx, "Images", empty{}, &images)
	return images, err
}

// Inspect returns all that is recorded of an image; see [tank.Service].
func (c *Client) Inspect(ctx context.Context, ref string) (*tank.ImageDetails, error) {
	details := &tank.ImageDetails{}
	if err := c.call(ctx, "Inspect", refRequest{ref}, details); err != nil {
		return nil, err
	}
	return details, nil
}

// Remove removes the record of an image; see [tank.Service].
func (c *Client) Remove(ctx context.Context, ref string) error {
	return c.call(ctx, "Remove", refRequest{ref}, &empty{})
}

// GC deletes what nothing holds; see [tank.Service].
func (c *Client) GC(ctx context.Context) (r tank.Reclaimed, err error) {
	err = c.call(ctx, "GC", empty{}, &r)
	return r, err
}

// Check checks the root; see [tank.Service]. It calls report when the check has ended.
func (c *Client) Check(ctx context.Context, report func(tank.Fault)) error {
	var faults []tank.Fault
	if err := c.call(ctx, "Check", empty{}, &faults); err != nil {
		return err
	}
	for _, f := range faults {
		report(f)
	}
	return nil
}

// Holders lists what each holder keeps; see [tank.Service].
func (c *Client) Holders(ctx context.Context) (holders []tank.HolderInfo, err error) {
	err = c.call(ctx, "Holders", empty{}, &holders)
	return holders, err
}

// Release gives up everything that a holder keeps; see [tank.Service].
func (c *Client) Release(ctx context.Context, holder string, opts *tank.ReleaseOptions) (h tank.HolderInfo, err error) {
	req := releaseRequest{Holder: holder}
	if opts != nil {
		req.ReleaseOptions = *opts
	}
	err = c.call(ctx, "Release", req, &h)
	return h, err
}
