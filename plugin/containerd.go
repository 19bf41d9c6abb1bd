package plugin

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// Limits of time.
const (
	answerTime     = time.Second            // until containerd reports whether it has a blob; a Prepare waits for it
	stallTime      = 15 * time.Second       // until containerd sends the next bytes of a blob
	reconnectDelay = 500 * time.Millisecond // between two attempts to connect
)

// Limits of the memory for one blob that is read from containerd.
const (
	streamWindow  = 2 << 20 // bytes that containerd may send before gRPC has passed them on
	messagesAhead = 2       // messages of up to 1 MiB that wait for the reader
)

// ContainerdOptions of DialContainerd. nil means the zero value.
type ContainerdOptions struct {
	// Answer is how long containerd may take to report whether it has a blob. 0 means 1 second.
	Answer time.Duration
	// Stall is how long containerd may take until it sends the first or the next bytes of a blob. 0 means
	// 15 seconds.
	Stall time.Duration
}

// Containerd is a client of the content store of a containerd that does not use the root's (ADR 9). Every
// call ends in time, and returns errdefs.ErrUnavailable if containerd does not answer.
//
// Its calls only read containerd's database, so they are allowed while containerd waits for a Prepare or an
// Apply. No Commit and no Remove makes them.
type Containerd struct {
	conn       *grpc.ClientConn
	blobs      contentapi.ContentClient
	namespaces namespacesapi.NamespacesClient
	opts       ContainerdOptions
}

// DialContainerd makes a client of the containerd at a unix socket. The client connects at the first call,
// and again after containerd was restarted. opts may be nil.
func DialContainerd(address string, opts *ContainerdOptions) (*Containerd, error) {
	c := &Containerd{}
	if opts != nil {
		c.opts = *opts
	}
	if c.opts.Answer == 0 {
		c.opts.Answer = answerTime
	}
	if c.opts.Stall == 0 {
		c.opts.Stall = stallTime
	}
	socket := strings.TrimPrefix(address, "unix://")
	delays := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectDelay}
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: delays, MinConnectTimeout: time.Second}),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(4*streamWindow),
		// A call waits for the next attempt to connect. The last one may have failed before containerd started.
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("containerd %s: %w", address, err)
	}
	c.conn, c.blobs, c.namespaces = conn, contentapi.NewContentClient(conn), namespacesapi.NewNamespacesClient(conn)
	return c, nil
}

// Close ends the connection. Blobs that are being read end with an error.
func (c *Containerd) Close() error { return c.conn.Close() }

// Size returns the size in bytes of a blob that any of containerd's namespaces has. With containerd's
// default policy, the other namespaces adopt such a blob without fetching it. Size returns
// errdefs.ErrNotFound if no namespace has the blob.
func (c *Containerd) Size(ctx context.Context, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Answer)
	defer cancel()
	_, size, err := c.find(ctx, d)
	return size, c.fault(d, err)
}

// Open reads a blob from the namespace of the call that ctx belongs to. If ctx belongs to none, it reads the
// blob from any namespace that has it. Open returns errdefs.ErrNotFound if the blob is missing. Read returns
// io.EOF after all bytes if they match the digest, and errdefs.ErrDataLoss if they do not.
func (c *Containerd) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.100q: %w: %w", string(d), err, errdefs.ErrInvalidArgument)
	}
	asked, cancel := context.WithTimeout(ctx, c.opts.Stall)
	defer cancel()
	var size int64
	ns, err := namespaces.NamespaceRequired(ctx)
	if err == nil {
		size, err = c.size(asked, ns, d)
	} else {
		ns, size, err = c.find(asked, d)
	}
	if err != nil {
		return nil, c.fault(d, err)
	}
	return c.read(ctx, ns, d, size), nil
}

// Access returns errdefs.ErrNotFound unless the namespace of the call that ctx belongs to has a blob.
func (c *Containerd) Access(ctx context.Context, d digest.Digest) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.Stall)
	defer cancel()
	_, err = c.size(ctx, ns, d)
	return c.fault(d, err)
}

// find returns a namespace that has a blob, and the blob's size in bytes.
func (c *Containerd) find(ctx context.Context, d digest.Digest) (ns string, size int64, err error) {
	all, err := c.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return "", 0, errgrpc.ToNative(err)
	}
	for _, n := range all.GetNamespaces() {
		if size, err = c.size(ctx, n.GetName(), d); !errdefs.IsNotFound(err) {
			return n.GetName(), size, err
		}
	}
	return "", 0, errdefs.ErrNotFound
}

func (c *Containerd) size(ctx context.Context, ns string, d digest.Digest) (int64, error) {
	reply, err := c.blobs.Info(namespaces.WithNamespace(ctx, ns), &contentapi.InfoRequest{Digest: d.String()})
	return reply.GetInfo().GetSize(), errgrpc.ToNative(err)
}

// fault adds the blob to an error, and gives the error of a containerd that does not answer the class
// errdefs.ErrUnavailable.
func (c *Containerd) fault(d digest.Digest, err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsDeadlineExceeded(err), errors.Is(err, errStalled):
		return fmt.Errorf("blob %s: containerd does not answer: %w", d, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("blob %s: containerd: %w", d, err)
}

var errStalled = errors.New("stalled")

// blobStream reads a blob from containerd. The blob is received and hashed ahead of the reader.
type blobStream struct {
	messages <-chan []byte
	rest     []byte // of the message that is being read
	err      error  // set before messages is closed; io.EOF after the whole blob
	cancel   context.CancelCauseFunc
	done     sync.WaitGroup
}

// read requests the whole blob as one stream. containerd's own client requests piece after piece, and waits
// for each.
func (c *Containerd) read(ctx context.Context, ns string, d digest.Digest, size int64) *blobStream {
	messages := make(chan []byte, messagesAhead)
	ctx, cancel := context.WithCancelCause(namespaces.WithNamespace(ctx, ns))
	b := &blobStream{messages: messages, cancel: cancel}
	b.done.Go(func() {
		defer close(messages)
		defer cancel(nil)
		sum := d.Algorithm().Hash()
		n, err := c.receive(ctx, cancel, d, sum, messages)
		switch {
		case err != nil:
			b.err = c.fault(d, err)
		case n != size || digest.NewDigest(d.Algorithm(), sum) != d:
			b.err = fmt.Errorf("blob %s: containerd sent other bytes: %w", d, errdefs.ErrDataLoss)
		default:
			b.err = io.EOF
		}
	})
	return b
}

// receive passes messages to the reader until the stream ends.
func (c *Containerd) receive(ctx context.Context, cancel context.CancelCauseFunc, d digest.Digest, sum hash.Hash,
	to chan<- []byte,
) (n int64, err error) {
	stall := time.AfterFunc(c.opts.Stall, func() { cancel(errStalled) })
	defer stall.Stop()
	stream, err := c.blobs.Read(ctx, &contentapi.ReadContentRequest{Digest: d.String()})
	for err == nil {
		var m *contentapi.ReadContentResponse
		stall.Reset(c.opts.Stall)
		if m, err = stream.Recv(); err != nil {
			break
		}
		stall.Stop() // the reader may be slow
		sum.Write(m.GetData())
		n += int64(len(m.GetData()))
		select {
		case to <- m.GetData():
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(err, io.EOF):
		return n, nil
	case cause != nil:
		return n, cause
	}
	return n, errgrpc.ToNative(err)
}

func (b *blobStream) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		m, ok := <-b.messages
		if !ok {
			return 0, b.err
		}
		b.rest = m
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close cancels a Read that waits. It may be called twice.
func (b *blobStream) Close() error {
	b.cancel(context.Canceled)
	b.done.Wait()
	return nil
}
