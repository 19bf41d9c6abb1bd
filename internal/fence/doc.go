// Package fence answers a call in time although the work behind it may hang.
//
// It owns nothing on disk.
//
// Its invariant: Do and Stream return within the limit after the work last made progress. Work that
// has not ended by then goes on in the background. There is never more work in flight, answered or
// not, than the class of the call allows, so that a disk that stands still costs a bounded number of
// threads and a bounded amount of memory.
//
// The surprising rule: a call that is repeated does not begin its work again. It waits for the work
// of the first call and gets its result. If nobody asks for that result, and the work has made
// something that only the caller would have known of, the fence has it removed again.
package fence
