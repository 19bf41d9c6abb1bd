package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/printable"
)

// A Pull and a Repair are streams in both directions. The client sends the request. The server sends
// progress, and asks for credentials, which the client answers. In the end the server sends the result, or
// the stream ends with an error.

// pullMessage is a message of the client. One field is set.
type pullMessage struct {
	Request *pullRequest      `json:"request,omitempty"`
	Repair  *repairRequest    `json:"repair,omitempty"`
	Answer  *credentialAnswer `json:"answer,omitempty"`
}

// pullReply is a message of the server. One field is set.
type pullReply struct {
	Progress *progress          `json:"progress,omitempty"`
	Ask      *ask               `json:"ask,omitempty"`
	Image    *tank.Image        `json:"image,omitempty"`
	Repaired *tank.RepairResult `json:"repaired,omitempty"`
}

// progress is a line of the log, or an event.
type progress struct {
	Line string `json:"line,omitempty"`
	tank.Event
}

// ask asks for the client's credential for a registry.
type ask struct {
	ID   int    `json:"id"`
	Host string `json:"host"`
}

type credentialAnswer struct {
	ID         int             `json:"id"`
	Credential tank.Credential `json:"credential"`
	Error      string          `json:"error,omitempty"`
}

// pullServer is the server's side of one stream.
type pullServer struct {
	stream  grpc.ServerStream
	replies chan pullReply
	done    <-chan struct{} // closed when the client has gone

	mu    sync.Mutex // guards asked and next
	asked map[int]chan credentialAnswer
	next  int
}

func servePull(srv any, stream grpc.ServerStream) error {
	var first pullMessage
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if first.Request == nil {
		return errgrpc.ToGRPC(fmt.Errorf("pull: no request: %w", errdefs.ErrInvalidArgument))
	}
	e, opts := srv.(*endpoint), first.Request.PullOptions
	if !first.Request.OwnHosts {
		opts.HostsDir = e.hostsDir
	}
	return serveStream(stream, func(p *pullServer) (pullReply, error) {
		opts.Progress, opts.Log, opts.Credentials = p.event, p.line, p.credential
		img, err := e.svc.Pull(stream.Context(), first.Request.Ref, &opts)
		return pullReply{Image: img}, err
	})
}

// serveStream serves one stream with call, which returns the last reply.
func serveStream(stream grpc.ServerStream, call func(*pullServer) (pullReply, error)) error {
	p := &pullServer{
		stream: stream, replies: make(chan pullReply, 64), done: stream.Context().Done(),
		asked: map[int]chan credentialAnswer{},
	}
	sent := make(chan error, 1)
	go p.send(sent)
	go p.receive()
	last, err := call(p)
	close(p.replies)
	if serr := <-sent; err == nil {
		err = serr
	}
	if err != nil {
		return toStatus(err)
	}
	return stream.SendMsg(last)
}

func (p *pullServer) event(e tank.Event) { p.report(progress{Event: e}) }

func (p *pullServer) line(line string) { p.report(progress{Line: line}) }

// send sends the replies one after the other, as gRPC requires.
func (p *pullServer) send(sent chan<- error) {
	var err error
	for r := range p.replies {
		if err == nil {
			err = p.stream.SendMsg(r)
		}
	}
	sent <- err
}

// receive passes each answer of the client on to the call of credential that waits for it. It ends with the
// stream.
func (p *pullServer) receive() {
	for {
		var m pullMessage
		if err := p.stream.RecvMsg(&m); err != nil {
			return
		}
		if m.Answer == nil {
			continue
		}
		p.mu.Lock()
		c := p.asked[m.Answer.ID]
		delete(p.asked, m.Answer.ID)
		p.mu.Unlock()
		if c != nil {
			c <- *m.Answer
		}
	}
}

// report sends progress to the client. If the client is slow, events that a later one supersedes are dropped.
func (p *pullServer) report(e progress) {
	if e.Line != "" || e.Done {
		select {
		case p.replies <- pullReply{Progress: &e}:
		case <-p.done:
		}
		return
	}
	select {
	case p.replies <- pullReply{Progress: &e}:
	default:
	}
}

// credential asks the client for its credential for a registry.
func (p *pullServer) credential(ctx context.Context, host string) (tank.Credential, error) {
	c := make(chan credentialAnswer, 1)
	p.mu.Lock()
	p.next++
	id := p.next
	p.asked[id] = c
	p.mu.Unlock()
	select {
	case p.replies <- pullReply{Ask: &ask{ID: id, Host: host}}:
	case <-p.done:
	case <-ctx.Done():
	}
	select {
	case a := <-c:
		if a.Error != "" {
			return a.Credential, fmt.Errorf("%s: %w", a.Error, errdefs.ErrUnauthenticated)
		}
		return a.Credential, nil
	case <-p.done:
	case <-ctx.Done():
	}
	return tank.Credential{}, fmt.Errorf("credentials of %s: the client has gone: %w", host, errdefs.ErrAborted)
}

// maxAsks bounds how many requests for credentials are answered at once, because each may run a program.
const maxAsks = 16

// Pull has the process pull an image; see [tank.Service]. It returns errdefs.ErrFailedPrecondition if the
// answer names a rootfs outside the root.
func (c *Client) Pull(ctx context.Context, ref string, opts *tank.PullOptions) (image *tank.Image, err error) {
	if opts == nil {
		opts = &tank.PullOptions{}
	}
	req, credentials, err := entrust(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	err = c.attend(ctx, func(ctx context.Context) error {
		last, err := c.stream(ctx, &description.Streams[0], pullMessage{Request: &req}, hooks{
			what: "pull " + req.Ref, log: req.Log, progress: req.Progress, credentials: credentials,
		})
		if err == nil && last.Image == nil {
			err = fmt.Errorf("pull %s: not the answer to a pull: %w", req.Ref, errdefs.ErrFailedPrecondition)
		}
		image = last.Image
		return err
	})
	if err != nil {
		return nil, err
	}
	return image, check(image, c.root)
}

// check refuses an answer with invalid digests or with a rootfs outside the root, because digests are
// printed and the rootfs is opened.
func check(i *tank.Image, root string) error {
	if i.Manifest.Validate() != nil || i.Digest.Validate() != nil {
		return fmt.Errorf("pull: the answer has invalid digests %q and %q: %w", printable.Text(string(i.Digest)),
			printable.Text(string(i.Manifest)), errdefs.ErrFailedPrecondition)
	}
	inside := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(i.Rootfs)).Validate() == nil &&
		filepath.Dir(i.Rootfs) == filepath.Join(root, "rootfs", "sha256")
	if i.Rootfs != "" && !inside {
		return fmt.Errorf("pull: the answer's rootfs %q does not lie in the root %q: %w",
			printable.Text(i.Rootfs), root, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// hooks are what a stream calls in the client.
type hooks struct {
	what        string // for errors
	log         func(line string)
	progress    func(tank.Event)
	credentials tank.Credentials
}

// stream sends the first message of a stream, serves the server's requests, and returns its last reply.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, first pullMessage, h hooks) (
	last pullReply, err error,
) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, desc, "/"+serviceName+"/"+desc.StreamName)
	if err != nil {
		return last, native(err)
	}
	var mu sync.Mutex // one message at a time
	send := func(m pullMessage) {
		mu.Lock()
		defer mu.Unlock()
		_ = stream.SendMsg(m) // RecvMsg returns why it failed
	}
	send(first)
	asks := make(chan struct{}, maxAsks)
	for {
		var reply pullReply
		switch err := stream.RecvMsg(&reply); {
		case errors.Is(err, io.EOF):
			return last, fmt.Errorf("%s: no answer: %w: %w", h.what, io.ErrUnexpectedEOF, errdefs.ErrUnavailable)
		case err != nil:
			return last, native(err)
		case reply.Image != nil, reply.Repaired != nil:
			return reply, nil
		case reply.Ask != nil:
			select {
			case asks <- struct{}{}:
			default:
				return last, fmt.Errorf("%s: more than %d questions for credentials at once: %w", h.what, maxAsks,
					errdefs.ErrFailedPrecondition)
			}
			go func() {
				defer func() { <-asks }()
				send(pullMessage{Answer: answer(ctx, *reply.Ask, h.credentials)})
			}()
		case reply.Progress != nil && reply.Progress.Line != "":
			if h.log != nil {
				h.log(reply.Progress.Line)
			}
		case reply.Progress != nil && h.progress != nil:
			h.progress(reply.Progress.Event)
		}
	}
}

// answer returns the credential that the server asks for.
func answer(ctx context.Context, q ask, credentials tank.Credentials) *credentialAnswer {
	a := &credentialAnswer{ID: q.ID}
	if credentials == nil {
		return a
	}
	var err error
	if a.Credential, err = credentials(ctx, q.Host); err != nil {
		a.Error = err.Error()
	}
	return a
}
