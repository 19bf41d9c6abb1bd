package rootdir

import (
	"strconv"

	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/metadata"
)

// numberBlock is how many numbers are taken from the database at once. Those that a process does
// not use are never used.
const numberBlock = 64

// numbers gives out the names of layers and snapshots. They are short, because overlay's options
// have to fit into a page. No number is given out twice, even if the transaction that records the
// directory fails.
type numbers struct {
	mu        lockorder.Mutex // guards the fields below; newNumber holds it while a transaction takes a block
	next, end uint64
	spare     uint64 // the first number of the block after this one; 0 if there is none yet
}

// low reports whether a transaction that records an entry should take the next block too.
func (n *numbers) low() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.spare == 0 && n.end-n.next < numberBlock/2
}

// add adds the block that a transaction took, once the transaction is durable. If two transactions
// took a block at the same time, one of the blocks is never used.
func (n *numbers) add(first uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.spare = first
}

// newNumber returns a name that nothing in layers/ and snapshots/ has. It must not be called in a
// transaction.
func (d *Dir) newNumber() (string, error) {
	n := &d.numbers
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if n.next == n.end && n.spare != 0 {
			n.next, n.end, n.spare = n.spare, n.spare+numberBlock, 0
		}
		if n.next == n.end {
			if err := d.takeNumbers(); err != nil {
				return "", err
			}
		}
		n.next++
		name := strconv.FormatUint(n.next-1, 10)
		// After the loss of the database, numbers that the database gives out may be in use.
		if !exists(d.Path(Layers, name)) && !exists(d.Path(Snapshots, name)) {
			return name, nil
		}
	}
}

// takeNumbers takes a block from the database. Called with numbers.mu held.
func (d *Dir) takeNumbers() error {
	return d.db.Update(func(tx *metadata.Tx) error {
		first, err := tx.TakeIDs(numberBlock)
		if err == nil {
			d.numbers.next, d.numbers.end = first, first+numberBlock
		}
		return err
	})
}
