//go:build !lockorder

package lockorder

import "sync"

// Checked reports whether this build checks the order.
const Checked = false

// Mutex is a sync.Mutex with a place in the order.
type Mutex struct {
	Rank Rank // required
	sync.Mutex
}

// RWMutex is a sync.RWMutex with a place in the order.
type RWMutex struct {
	Rank Rank // required
	sync.RWMutex
}
