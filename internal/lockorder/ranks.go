package lockorder

// The order, outermost first. A lock is entered here together with a sentence that says what it
// guards, and why it comes where it does.
const (
	_ Rank = iota // no rank: a lock of this package's types must have one

	// Index is held while index.json is compared with the records and replaced
	// (internal/ocilayout). It comes before the database because the images are read meanwhile.
	Index

	// Claim is held by one of those who wait for an unpack, while it records the layer
	// (snapshot/layer). It comes before the gate, which rootdir.Dir.Place takes.
	Claim

	// Gate is held for reading while an entry has its position in the root but no record, and for
	// writing by a sweep (rootdir.Dir.KeepSweepsAway, BeginSweep). It comes before the database
	// because the record is written meanwhile. The keyed locks (package keylock) come before it,
	// and have no rank: a goroutine may hold several of them.
	Gate

	// Numbers is held while rootdir.Dir gives out the number of a layer or a snapshot. It comes
	// before the database, from which it takes the numbers in a transaction.
	Numbers

	// Database is held by the goroutine that runs the functions of write transactions
	// (metadata.DB.Update, Batch, UpdateDeferred). It comes last: a function in a transaction takes
	// no lock but a leaf, because every writer of the root waits for it.
	Database
)

// rankNames are the ranks as an error shows them.
var rankNames = [...]string{
	Index:    "the image layout of a root",
	Claim:    "the claim of an unpacked layer",
	Gate:     "the gate of a root directory",
	Numbers:  "the numbers of a root directory's entries",
	Database: "the database's write transaction",
}
