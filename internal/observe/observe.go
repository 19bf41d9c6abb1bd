// Package observe is the seam through which metrics and traces see what Tank does: downloads,
// unpacks, syncs, sweeps and cache hits.
//
// It owns nothing on disk.
//
// Its invariant: every operation that begins ends exactly once, with its outcome, also after an
// error or a panic.
//
// The surprising rule: a nil Observer is valid and means that nobody observes. Code calls the
// functions Begin and Note of this package, never an Observer's method.
package observe

import (
	"context"
	"sync/atomic"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations. The fields of Event and Result that a kind does not mention are zero.
const (
	// Download is the transfer of one blob from a registry into the content store, retries
	// included. Event: Subject is the blob's digest, Source the registry's host name, Bytes the
	// size of the blob in its descriptor. Result: Bytes is what was received from the network,
	// which is less than the blob's size when a transfer was resumed.
	Download Kind = "download"
	// Unpack is the extraction of one layer. It may begin while the blob still downloads, and then
	// includes the time during which it waits for bytes. Event: Subject is the digest of the
	// layer's blob, Bytes that blob's size, Source "blob" if all of the blob was here at the beginning
	// and "download" if the unpack follows its download. Result: Bytes are those of the extracted
	// files, Count is the number of their inodes; both are 0 for a layer that was only hashed.
	Unpack Kind = "unpack"
	// Sync makes provisional layers and root file systems durable with syncfs. Result: Count is the
	// number of records that became durable.
	Sync Kind = "sync"
	// Sweep deletes what no record names. Event: Subject is "content" or "layers". Result: Bytes
	// are those that were freed, as far as the sweep knows, Count is the number of entries.
	Sweep Kind = "sweep"
	// Hit is an answer from the store that makes a transfer or an extraction unnecessary. It takes
	// no time. Event: Subject is the digest of a blob, the diff ID of a layer or the reference of
	// an image, Bytes the size of the blob, 0 if it is unknown. Result: Err is always nil.
	Hit Kind = "hit"
)

// Event describes an operation that begins. Sizes are in bytes; zero means that a field is unknown
// or does not apply.
type Event struct {
	Kind    Kind
	Subject string
	Source  string
	Bytes   int64
}

// Result is the outcome of an operation.
type Result struct {
	Err   error // nil if the operation succeeded
	Bytes int64
	Count int64
}

// Observer sees operations. Its methods may be called by many goroutines at once, and must return
// quickly: the operation waits for them.
type Observer interface {
	// Begin is called when an operation begins. The operation goes on with next, in which a trace
	// carries its span, and calls end once when it is over. ctx, next and end are not nil.
	Begin(ctx context.Context, e Event) (next context.Context, end func(Result))
}

// Begin reports to o, which may be nil, that an operation begins. The returned function, which is
// never nil, ends the operation. Calls after the first have no effect, so a caller can defer one for
// an unexpected return.
func Begin(ctx context.Context, o Observer, e Event) (context.Context, func(Result)) {
	if o == nil {
		return ctx, func(Result) {}
	}
	ctx, end := o.Begin(ctx, e)
	var ended atomic.Bool
	return ctx, func(r Result) {
		if ended.CompareAndSwap(false, true) {
			end(r)
		}
	}
}

// Note reports to o, which may be nil, an operation that takes no time, such as a Hit.
func Note(ctx context.Context, o Observer, e Event, r Result) {
	if o != nil {
		_, end := o.Begin(ctx, e)
		end(r)
	}
}
