package lockorder

// The order, outermost first. A lock is entered here together with a sentence that says what it
// guards, and why it comes where it does.
//
// The locks of keys (package keylock) have no rank, because a goroutine may hold those of several
// keys. They come after Shortage and before Index, in this order:
//
//   - the reference of a pull (tank), before Images;
//   - the manifest of a root filesystem (snapshot/layer, "rootfs/");
//   - a snapshot whose fix-up or view root is made (snapshot, "snapshot/" and "root/");
//   - a layer that is compared with its seal or built again (snapshot/layer, "trust/");
//   - the one that measures and changes modes (snapshot/layer, "modes").
//
// To build a fix-up again, a goroutine that holds "trust/" of the fix-up makes the stack below the
// snapshot with the shortest chain that stands on it, and so takes "snapshot/" of that snapshot's
// ancestors. This cannot end in a circle: whoever waits for that "trust/" meanwhile holds "snapshot/"
// of a snapshot that stands on the fix-up too, or is above one that does, and none of those is an
// ancestor of the shortest.
const (
	_ Rank = iota // no rank: a lock of this package's types must have one

	// Images is held for reading while a pull answers from a record, and for writing while records
	// of images are removed (tank.Tank). It comes first because both take as long as the
	// operation: an image may be assembled meanwhile, or everything swept.
	Images

	// Shortage is held while a goroutine makes room on a full disk (tank.Tank): it ends pulls that do
	// not run and sweeps, so it comes before all locks of the rooms below.
	Shortage

	// Index is held while index.json is compared with the records and replaced
	// (internal/ocilayout). It comes before the database because the images are read meanwhile.
	Index

	// Claim is held by one of those who wait for an unpack, while it records the layer
	// (snapshot/layer). It comes before the gate, which rootdir.Dir.Place takes.
	Claim

	// Writer is held by a call that changes one ingest (content). It comes before the gate, because a
	// commit places the blob meanwhile. A sweep, which holds the gate, never takes it.
	Writer

	// Gate is held for reading while an entry has its position in the root but no record, and for
	// writing by a sweep (rootdir.Dir.KeepSweepsAway, BeginSweep). It comes before the database
	// because the record is written meanwhile. The keyed locks (package keylock) come before it,
	// and have no rank: a goroutine may hold several of them.
	Gate

	// Ingests is held while the table of open writers is read or changed, or an ingest is moved away
	// (content.Store). It comes after Writer, because a writer that closes leaves the table, and after
	// the gate, because a sweep of ingests holds the gate.
	Ingests

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
	Images:   "the images of a root",
	Shortage: "the making of room on a full disk",
	Index:    "the image layout of a root",
	Claim:    "the claim of an unpacked layer",
	Gate:     "the gate of a root directory",
	Ingests:  "the table of writers",
	Writer:   "the writer of an ingest",
	Numbers:  "the numbers of a root directory's entries",
	Database: "the database's write transaction",
}
