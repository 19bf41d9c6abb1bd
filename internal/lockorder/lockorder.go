// Package lockorder writes down in which order Tank takes its locks, and has tests hold it.
//
// It owns nothing on disk. The constants below are the order: a goroutine that holds a lock takes only locks of larger
// rank. A mutex that is not of this package's types is a leaf: whoever holds it takes no other lock, makes no call to
// another package's interface, and does no I/O but that of the file it guards.
//
// Its invariant: with the build tag lockorder, which the tests of CI set, a goroutine that takes a lock out of order
// panics, whether or not another goroutine would have deadlocked with it.
//
// The surprising rule: without the tag the types are sync.Mutex and sync.RWMutex with a field more, and check nothing.
package lockorder

import "fmt"

// Rank is the place of a lock in the order: a smaller one is taken first.
type Rank uint8

// String returns what the lock of a rank guards.
func (r Rank) String() string {
	if int(r) < len(rankNames) {
		return rankNames[r]
	}
	return fmt.Sprintf("rank %d", uint8(r))
}
