package plugin

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

	"github.com/tank-snapshotter/tank/internal/printable"
)

// A Pull is a conversation: the client says what it wants; the server tells of progress and asks for credentials, which
// the client answers; at last the server sends the image, or the stream ends with an error.

// pullMessage is what the client says.
type pullMessage struct {
	Request *PullRequest      `json:"request,omitempty"`
	Answer  *credentialAnswer `json:"answer,omitempty"`
}

// pullReply is what the server says.
type pullReply struct {
	Progress *Progress    `json:"progress,omitempty"`
	Ask      *ask         `json:"ask,omitempty"`
	Image    *PulledImage `json:"image,omitempty"`
}

// ask asks for the client's credential for a registry.
type ask struct {
	ID   int    `json:"id"`
	Host string `json:"host"`
}

type credentialAnswer struct {
	ID         int        `json:"id"`
	Credential Credential `json:"credential"`
	Error      string     `json:"error,omitempty"`
}

// pullServer is the server's side of one conversation.
type pullServer struct {
	stream  grpc.ServerStream
	replies chan pullReply
	done    <-chan struct{} // the client has gone

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
	p := &pullServer{
		stream: stream, replies: make(chan pullReply, 64), done: stream.Context().Done(), asked: map[int]chan credentialAnswer{},
	}
	sent := make(chan error, 1)
	go p.send(sent)
	go p.receive()
	img, err := srv.(Admin).Pull(stream.Context(), *first.Request, PullClient{Report: p.report, Credentials: p.credential})
	close(p.replies)
	if serr := <-sent; err == nil {
		err = serr
	}
	if err != nil {
		return toStatus(err)
	}
	return stream.SendMsg(pullReply{Image: img})
}

// send sends what is to be said, one after the other, as gRPC wants it.
func (p *pullServer) send(sent chan<- error) {
	var err error
	for r := range p.replies {
		if err == nil {
			err = p.stream.SendMsg(r)
		}
	}
	sent <- err
}

// receive gives the client's answers to who asked. It ends with the stream.
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

// report passes progress on. What only says how far a download is is dropped while the client does not take it.
func (p *pullServer) report(e Progress) {
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
func (p *pullServer) credential(ctx context.Context, host string) (Credential, error) {
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
	return Credential{}, fmt.Errorf("credentials of %s: the client has gone: %w", host, errdefs.ErrAborted)
}

// maxAsks bounds how many requests for credentials are answered at once, because each may run a program.
const maxAsks = 16

// Pull asks the process to pull an image. It returns an error if the path of the rootfs does not lie in that process's
// root.
func (c *Client) Pull(ctx context.Context, req PullRequest, client PullClient) (image *PulledImage, err error) {
	err = c.attend(ctx, func(ctx context.Context) error {
		image, err = c.pull(ctx, req, client)
		return err
	})
	if err != nil {
		return nil, err
	}
	return image, image.check(c.root)
}

// check refuses an answer with invalid digests or with a rootfs outside the root, because digests are printed and the
// rootfs is opened.
func (i *PulledImage) check(root string) error {
	if digest.Digest(i.Manifest).Validate() != nil || digest.Digest(i.Digest).Validate() != nil {
		return fmt.Errorf("pull: the answer has invalid digests %q and %q: %w", printable.Text(i.Digest),
			printable.Text(i.Manifest), errdefs.ErrFailedPrecondition)
	}
	inside := digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(i.Rootfs)).Validate() == nil &&
		filepath.Dir(i.Rootfs) == filepath.Join(root, "rootfs", "sha256")
	if i.Rootfs != "" && !inside {
		return fmt.Errorf("pull: the answer's rootfs %q does not lie in the root %q: %w", printable.Text(i.Rootfs), root,
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (c *Client) pull(ctx context.Context, req PullRequest, client PullClient) (*PulledImage, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.conn.NewStream(ctx, &adminService.Streams[0], "/"+serviceName+"/Pull")
	if err != nil {
		return nil, native(err)
	}
	var mu sync.Mutex // one message at a time
	say := func(m pullMessage) {
		mu.Lock()
		defer mu.Unlock()
		_ = stream.SendMsg(m) // RecvMsg returns why it failed
	}
	say(pullMessage{Request: &req})
	asks := make(chan struct{}, maxAsks)
	for {
		var reply pullReply
		switch err := stream.RecvMsg(&reply); {
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("pull %s: no answer: %w", req.Ref, io.ErrUnexpectedEOF)
		case err != nil:
			return nil, native(err)
		case reply.Image != nil:
			return reply.Image, nil
		case reply.Ask != nil:
			select {
			case asks <- struct{}{}:
			default:
				return nil, fmt.Errorf("pull %s: more than %d questions for credentials at once: %w", req.Ref, maxAsks,
					errdefs.ErrFailedPrecondition)
			}
			go func() {
				defer func() { <-asks }()
				say(pullMessage{Answer: client.answer(ctx, *reply.Ask)})
			}()
		case reply.Progress != nil && client.Report != nil:
			client.Report(*reply.Progress)
		}
	}
}

// answer finds the credential that the server asks for.
func (c PullClient) answer(ctx context.Context, q ask) *credentialAnswer {
	a := &credentialAnswer{ID: q.ID}
	if c.Credentials == nil {
		return a
	}
	var err error
	if a.Credential, err = c.Credentials(ctx, q.Host); err != nil {
		a.Error = err.Error()
	}
	return a
}
