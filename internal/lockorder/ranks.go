package lockorder

// The order, outermost first. A lock is entered here together with a sentence that says what it guards, and why it
// comes where it does.
const (
	_ Rank = iota // no rank: a lock of this package's types must have one

	// Database is held by the goroutine that runs the functions of write transactions (metadata.DB.Update, Batch,
	// UpdateDeferred). It comes last: a function in a transaction takes no lock but a leaf, because every writer of the
	// root waits for it.
	Database
)

// rankNames are the ranks as an error shows them.
var rankNames = [...]string{
	Database: "the database's write transaction",
}
