// Package interrupt ends loops and copies when a context ends.
//
// It owns nothing. Its invariant: the error is the cause of the context's end. The surprising rule: Every looks at the
// context in one of 64 steps only, because a step takes microseconds and each look takes a lock.
package interrupt
