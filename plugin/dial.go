package plugin

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

	"github.com/tank-snapshotter/tank/internal/peer"
)

// ErrSilent is the error of a call to a process that does not answer because it is stopped or hangs. A process that is
// only busy answers the question for its root.
var ErrSilent = fmt.Errorf("the process does not answer: it is stopped or hangs: %w", context.DeadlineExceeded)

// A server answers the question for its root in a goroutine that waits for nothing. Two questions without an answer are
// silence; one is not enough, because this process itself may have been stopped while it waited.
const (
	askEvery    = 500 * time.Millisecond // while a call runs
	answersSoon = 2 * time.Second
	questions   = 2
)

// Client is an Admin that sends its calls to the process that owns a root.
type Client struct {
	conn *grpc.ClientConn
	root string
}

var _ Admin = (*Client)(nil)

// DialOptions of Dial.
type DialOptions struct {
	// Owners are the users whose processes may answer, beside uid 0 and this process's own user. Zero value: none.
	Owners []uint32
}

// Dial connects to a socket and asks the process there for its root. Errors have the class that gRPC gives them:
// errdefs.ErrUnavailable when no process listens, errdefs.ErrPermissionDenied when the process belongs to another user
// than opts allows, ErrSilent when it does not answer. opts may be nil.
func Dial(ctx context.Context, socket string, opts *DialOptions) (*Client, error) {
	if opts == nil {
		opts = &DialOptions{}
	}
	fail := func(err error) (*Client, error) { return nil, fmt.Errorf("socket %s: %w", socket, err) }
	first, err := opts.connect(ctx, socket)
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
			return opts.connect(ctx, socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.CallContentSubtype(codec{}.Name()), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		first.Close()
		return fail(err)
	}
	c := &Client{conn: conn}
	if err := c.ask(ctx); err != nil {
		once.Do(func() { first.Close() }) // gRPC never used it
		return fail(errors.Join(err, conn.Close()))
	}
	return c, nil
}

// connect connects to a process whose user check accepts.
func (o *DialOptions) connect(ctx context.Context, socket string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, questions*answersSoon)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		switch {
		case err == nil:
			if err := o.check(conn); err != nil {
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
func (o *DialOptions) check(conn net.Conn) error {
	cred, err := peer.Credentials(conn)
	if err != nil {
		return err
	}
	for _, uid := range append([]uint32{0, uint32(os.Geteuid())}, o.Owners...) {
		if cred.Uid == uid {
			return nil
		}
	}
	return fmt.Errorf("the process there belongs to uid %d, which may not answer uid %d: %w", cred.Uid, os.Geteuid(),
		errdefs.ErrPermissionDenied)
}

// ask asks the process for its root. It returns ErrSilent if the process does not answer.
func (c *Client) ask(ctx context.Context) error {
	for range questions {
		var reply rootReply
		trying, cancel := context.WithTimeout(ctx, answersSoon)
		err := c.invoke(trying, "Root", empty{}, &reply)
		late := trying.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err != nil && late:
			continue
		case err != nil:
			return err
		case !filepath.IsAbs(reply.Root):
			return fmt.Errorf("root %q: not an absolute path: %w", reply.Root, errdefs.ErrFailedPrecondition)
		}
		if c.root == "" {
			c.root = reply.Root
		}
		return nil
	}
	return ErrSilent
}

// attend runs a call and ends it when the process no longer answers questions. The call itself may take any time.
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
