package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
)

// Each blob of a history has two refs of its own, so that the histories of blobs do not influence each other. A blob is
// written in two halves.
const (
	linearBlobs = 4
	linearHalf  = 1000
)

// contentCall is one call of the content service. A stream of Write is several calls: open, write, and commit or close.
type contentCall struct {
	Op       string
	Blob     int // which one; -1 for the calls that list
	Ref      int // of the blob: 0 or 1
	Writer   int // the stream, unique in the history
	Expected bool
	Step     string // a step around the call
	Label    string // of commit and update
}

// contentResult is what a call returned.
type contentResult struct {
	Err   string
	Text  string
	Blobs [linearBlobs]string    // of list: what it reports about each blob
	Refs  [linearBlobs][2]string // of statuses: what it reports about each ref
	ends  bool                   // the stream has ended
}

// blobState is the state of one blob and its refs.
type blobState struct {
	exists bool
	label  string
	refs   [2]refState
	bytes  bool // the bytes may be on the disk without a blob: Tank makes a blob of them when a caller expects it
}

type refState struct {
	exists  bool
	offset  int
	writer  int  // the stream that has the ref; 0 for none
	aborted bool // the ingest of the stream was deleted
	placed  bool // the stream commits: its bytes have left the ingest
}

func (b blobState) info() string {
	if !b.exists {
		return ""
	}
	return fmt.Sprintf("%d bytes %q", 2*linearHalf, b.label)
}

// nextContent is the model of containerd's content store, for one blob. Some calls are several steps, because neither
// containerd's store nor Tank's makes them at one moment; see steps.
func nextContent(state blobState, c contentCall, r *contentResult) []blobState {
	if c.Step != "" {
		return nextStep(state, c, r)
	}
	next := state
	ref := &next.refs[c.Ref]
	var errs []string
	text := ""
	switch c.Op {
	case "open":
		if c.Expected && state.exists {
			errs = append(errs, "exists")
			if ref.writer == c.Writer { // see steps
				ref.writer = 0
			}
			break
		}
		if c.Expected && state.bytes && r != nil && r.Err == "exists" {
			errs = append(errs, "exists")
			next.exists = true
			break
		}
		switch {
		case ref.writer == c.Writer && ref.aborted:
			errs = append(errs, "aborted")
		case ref.writer == c.Writer:
			ref.exists = true
		case ref.writer != 0:
			errs = append(errs, "unavailable")
		default:
			return nil // the lock comes first
		}
		text = fmt.Sprint(ref.offset)
	case "write":
		if ref.aborted {
			errs = append(errs, "aborted")
			break
		}
		ref.offset += linearHalf
		text = fmt.Sprint(ref.offset)
	case "commit":
		switch {
		case ref.aborted && !ref.placed:
			errs = append(errs, "aborted")
		case ref.offset != 2*linearHalf:
			errs = append(errs, "failed precondition")
		case !ref.placed:
			return nil
		case state.exists:
			errs = append(errs, "exists")
		default:
			next.exists, next.label = true, c.Label
		}
	case "close":
		ref.release(c.Writer)
	case "abort":
		if ref.placed { // the directory may or may not have been deleted
			return []blobState{state}
		}
		if !ref.exists {
			errs = append(errs, "not found")
			break
		}
		*ref = refState{writer: ref.writer, aborted: ref.writer != 0}
	case "status":
		if !ref.exists {
			errs = append(errs, "not found")
		}
		text = fmt.Sprint(ref.offset)
	case "list":
		text = state.info()
	case "statuses":
		if ref.exists {
			text = fmt.Sprint(ref.offset)
		}
	default:
		if !state.exists {
			errs = append(errs, "not found")
			break
		}
		switch c.Op {
		case "delete":
			next.exists, next.label, next.bytes = false, "", true
		case "update":
			next.label = c.Label
			text = next.info()
		case "info":
			text = next.info()
		}
	}
	if r == nil {
		return []blobState{state, next}
	}
	got := r.Text
	switch c.Op {
	case "list":
		got = r.Blobs[c.Blob]
	case "statuses":
		got = r.Refs[c.Blob][c.Ref]
	}
	if len(errs) > 0 && slices.Contains(errs, r.Err) || len(errs) == 0 && r.Err == "" && got == text {
		return []blobState{next}
	}
	return nil
}

// release ends the stream that has the ref.
func (r *refState) release(writer int) {
	if r.writer == writer {
		*r = refState{exists: r.exists, offset: r.offset}
	}
}

// nextStep is nextContent for the steps around a call.
func nextStep(state blobState, c contentCall, r *contentResult) []blobState {
	next := state
	ref := &next.refs[c.Ref]
	switch c.Step {
	case "place": // the bytes leave the ingest
		if ref.writer != c.Writer || !ref.exists || ref.offset != 2*linearHalf {
			next = state
			break
		}
		ref.exists, ref.placed, next.bytes = false, true, true
		if r != nil {
			return []blobState{next}
		}
	case "release":
		if ref.writer != c.Writer {
			break
		}
		ref.release(c.Writer)
		if !ref.exists {
			ref.offset = 0
		}
		if r != nil {
			return []blobState{next}
		}
	case "lock":
		if ref.writer == 0 {
			*ref = refState{exists: ref.exists, offset: ref.offset, writer: c.Writer}
		}
		if r != nil && r.Err == "" && ref.writer == c.Writer {
			return []blobState{next}
		}
	case "make":
		if ref.writer == c.Writer {
			ref.exists = true
		}
	case "delete":
		*ref = refState{writer: ref.writer, aborted: ref.writer != 0}
	}
	if r != nil && (c.Step == "place" || c.Step == "release" || c.Step == "lock" && r.Err == "") {
		return nil // the call that has this step cannot have its result here
	}
	return []blobState{state, next}
}

// observes reports whether a call with this result never changes the state.
func (c contentCall) observes(r *contentResult) bool {
	switch {
	case r == nil || c.Step != "":
		return false
	case r.Err != "":
		return c.Op != "open" || r.Err == "unavailable"
	}
	return slices.Contains([]string{"status", "list", "statuses", "info", "read"}, c.Op)
}

// steps returns the steps of a call, which may happen at different moments during it.
func steps(c contentCall, r *contentResult) []contentCall {
	step := func(name string) contentCall {
		s := c
		s.Step = name
		return s
	}
	switch {
	case c.Op == "statuses": // neither store lists all ingests at one moment
		other := c
		other.Ref = 1 - c.Ref
		return []contentCall{c, other}
	case c.Op == "open" && (r == nil || r.Err == "aborted"): // while it was being opened
		return []contentCall{step("lock"), step("make"), c, step("release")}
	case c.Op == "open" && r.Err == "": // the ref is locked before its ingest exists
		return []contentCall{step("lock"), c}
	case c.Op == "commit" && r != nil && r.Err != "" && r.Err != "exists":
		return []contentCall{c, step("release")}
	case c.Op == "commit":
		// The ingest ends, the blob appears, and the ref is free, in this order.
		return []contentCall{step("place"), c, step("release")}
	case c.Op == "write" && (r == nil || r.ends):
		return []contentCall{c, step("release")}
	case c.Op == "open" && c.Expected && r.Err == "exists":
		// The expected blob may appear after the ref was locked. Then containerd's service frees the ref and deletes
		// the ingest, which may be that of another stream by then.
		return []contentCall{step("lock"), c, step("delete")}
	}
	return []contentCall{c}
}

var contentModel = linearModel[blobState, contentCall, contentResult]{
	next:     nextContent,
	observes: contentCall.observes,
	// A call that lists is one call for each blob: containerd's stores do not list all blobs at one moment either.
	parts: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, linearBlobs)
		for _, op := range history {
			c := op.Input.(contentCall)
			for i := range parts {
				if c.Blob == i || c.Blob < 0 {
					c := c
					c.Blob = i
					for _, op.Input = range steps(c, op.Output.(*contentResult)) {
						parts[i] = append(parts[i], op)
					}
				}
			}
		}
		return parts
	},
	describe: func(c contentCall, r *contentResult) string {
		if r == nil {
			return fmt.Sprintf("%+v", c)
		}
		return fmt.Sprintf("%+v: %s %s %v %v", c, r.Err, r.Text, r.Blobs, r.Refs)
	},
}

// contentClient is one client of the content service, which has at most one stream open.
type contentClient struct {
	api    contentapi.ContentClient
	prefix string // of the refs and blobs of the history
	stream contentapi.Content_WriteClient
	offset int64
}

// bytes returns the content of a blob.
func (c *contentClient) bytes(blob int) []byte {
	stem := fmt.Sprintf("%s%d ", c.prefix, blob)
	return []byte(strings.Repeat(stem, 2*linearHalf/len(stem)+1)[:2*linearHalf])
}

func (c *contentClient) ref(blob, n int) string { return fmt.Sprintf("%s%d-%d", c.prefix, blob, n) }

// call makes a call. Streams are used without containerd's client, which does not wait for their end.
func (c *contentClient) call(in contentCall) (contentResult, error) {
	var r contentResult
	var err error
	ctx := context.Background()
	switch in.Op {
	case "open", "write", "commit", "close":
		r.Text, r.ends, err = c.write(ctx, in)
	case "abort":
		_, err = c.api.Abort(ctx, &contentapi.AbortRequest{Ref: c.ref(in.Blob, in.Ref)})
	case "status":
		var st *contentapi.StatusResponse
		if st, err = c.api.Status(ctx, &contentapi.StatusRequest{Ref: c.ref(in.Blob, in.Ref)}); err == nil {
			r.Text = fmt.Sprint(st.Status.Offset)
		}
	case "list":
		r.Blobs, err = c.list(ctx)
	case "statuses":
		r.Refs, err = c.statuses(ctx)
	case "read":
		err = c.read(ctx, in.Blob)
	default:
		r.Text, err = c.blob(ctx, in)
	}
	r.Err, err = errorClass(errgrpc.ToNative(err))
	return r, err
}

// blob makes a call that concerns a whole blob.
func (c *contentClient) blob(ctx context.Context, in contentCall) (string, error) {
	d := digest.FromBytes(c.bytes(in.Blob)).String()
	text := func(i *contentapi.Info) string { return fmt.Sprintf("%d bytes %q", i.Size, i.Labels["l"]) }
	switch in.Op {
	case "info":
		i, err := c.api.Info(ctx, &contentapi.InfoRequest{Digest: d})
		if err != nil {
			return "", err
		}
		return text(i.Info), nil
	case "update":
		i, err := c.api.Update(ctx, &contentapi.UpdateRequest{
			Info: &contentapi.Info{Digest: d, Labels: map[string]string{"l": in.Label}},
		})
		if err != nil {
			return "", err
		}
		return text(i.Info), nil
	case "delete":
		_, err := c.api.Delete(ctx, &contentapi.DeleteContentRequest{Digest: d})
		return "", err
	}
	return "", fmt.Errorf("no call %q", in.Op)
}

// write makes one step of a stream of Write.
func (c *contentClient) write(ctx context.Context, in contentCall) (text string, ends bool, err error) {
	request := &contentapi.WriteContentRequest{Ref: c.ref(in.Blob, in.Ref)}
	switch in.Op {
	case "open":
		if c.stream, err = c.api.Write(ctx); err != nil {
			return "", true, err
		}
		request.Action, request.Total = contentapi.WriteAction_STAT, 2*linearHalf
		if in.Expected {
			request.Expected = digest.FromBytes(c.bytes(in.Blob)).String()
		}
	case "write":
		request.Action, request.Offset = contentapi.WriteAction_WRITE, c.offset
		request.Data = c.bytes(in.Blob)[c.offset:][:linearHalf]
	case "commit":
		request.Action, request.Offset, request.Total = contentapi.WriteAction_COMMIT, c.offset, 2*linearHalf
		request.Labels = map[string]string{"l": in.Label}
	case "close":
		return "", true, c.end()
	}
	if err := c.stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // with EOF, Recv returns the error
		return "", true, err
	}
	answer, err := c.stream.Recv()
	if err != nil {
		return "", true, err
	}
	if in.Op == "commit" {
		return "", true, c.end()
	}
	c.offset = answer.Offset
	return fmt.Sprint(answer.Offset), false, nil
}

// end waits until the service has ended the stream.
func (c *contentClient) end() error {
	if err := c.stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := c.stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// read reads a blob and compares it.
func (c *contentClient) read(ctx context.Context, blob int) error {
	want := c.bytes(blob)
	stream, err := c.api.Read(ctx, &contentapi.ReadContentRequest{Digest: digest.FromBytes(want).String()})
	if err != nil {
		return err
	}
	var got []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got = append(got, part.Data...)
	}
	if string(got) != string(want) {
		return fmt.Errorf("blob %d has %d other bytes", blob, len(got))
	}
	return nil
}

// list returns what List reports about each blob.
func (c *contentClient) list(ctx context.Context) (parts [linearBlobs]string, err error) {
	stream, err := c.api.List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return parts, err
	}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return parts, nil
		}
		if err != nil {
			return parts, err
		}
		for _, i := range page.Info {
			for blob := range parts {
				if i.Digest == digest.FromBytes(c.bytes(blob)).String() {
					parts[blob] = fmt.Sprintf("%d bytes %q", i.Size, i.Labels["l"])
				}
			}
		}
	}
}

// statuses returns what ListStatuses reports about the refs of each blob.
func (c *contentClient) statuses(ctx context.Context) (parts [linearBlobs][2]string, err error) {
	all, err := c.api.ListStatuses(ctx, &contentapi.ListStatusesRequest{})
	if err != nil {
		return parts, err
	}
	for _, st := range all.Statuses {
		for blob := range parts {
			for ref := range 2 {
				if st.Ref == c.ref(blob, ref) {
					parts[blob][ref] = fmt.Sprint(st.Offset)
				}
			}
		}
	}
	return parts, nil
}

// contentHistories returns a function that runs and checks the history of a seed.
func contentHistories(t *testing.T, k *TankRoot) func(seed uint64) bool {
	var conns []grpc.ClientConnInterface
	for range linearClients {
		conns = append(conns, k.dial(t))
	}
	return func(seed uint64) bool {
		clients := make([]linearClient[contentCall, contentResult], linearClients)
		callers := make([]*contentClient, linearClients)
		for i, conn := range conns {
			callers[i] = &contentClient{
				api: contentapi.NewContentClient(conn), prefix: fmt.Sprintf("%s-%d-", k.Root, seed),
			}
			clients[i] = callers[i].call
		}
		open := make([]contentCall, linearClients) // what each client has open
		history, err := runHistory(seed, clients, func(r *rand.Rand, client int, last *contentResult) contentCall {
			if last != nil && last.ends {
				open[client] = contentCall{}
			}
			c := nextContentCall(r, client, open[client], callers[client].offset)
			if c.Op == "open" {
				open[client] = c
			}
			return c
		})
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		ok := checkHistory(t, fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), seed), contentModel, history)
		for i, c := range callers {
			if open[i].Op != "" {
				_ = c.end() // the last call of the history may have ended it
			}
			for blob := range linearBlobs {
				for ref := range 2 {
					_, _ = c.call(contentCall{Op: "abort", Blob: blob, Ref: ref})
				}
				_, _ = c.call(contentCall{Op: "delete", Blob: blob})
			}
		}
		return ok && err == nil
	}
}

// nextContentCall makes a call at random, mostly the next step of the stream that the client has open.
func nextContentCall(r *rand.Rand, client int, open contentCall, offset int64) contentCall {
	label := fmt.Sprintf("%d-%d", client, r.IntN(1000))
	if open.Op != "" && r.IntN(10) < 7 {
		c := contentCall{Blob: open.Blob, Ref: open.Ref, Writer: open.Writer}
		switch n := r.IntN(10); {
		case n == 0:
			c.Op = "close"
		case offset < 2*linearHalf && n < 9:
			c.Op = "write"
		default:
			c.Op, c.Label = "commit", label
		}
		return c
	}
	c := contentCall{Blob: r.IntN(linearBlobs), Ref: r.IntN(2)}
	switch n := r.IntN(100); {
	case n < 45 && open.Op == "":
		c.Op, c.Writer, c.Expected = "open", client<<20|r.IntN(1<<20)+1, r.IntN(2) == 0
	case n < 55:
		c.Op = "status"
	case n < 62:
		c.Op = "abort"
	case n < 70:
		c.Op = "info"
	case n < 77:
		c.Op, c.Label = "update", label
	case n < 85:
		c.Op = "delete"
	case n < 90:
		c.Op = "read"
	case n < 95:
		c = contentCall{Op: "list", Blob: -1}
	default:
		c = contentCall{Op: "statuses", Blob: -1}
	}
	return c
}
