// Package metadata records what a root holds and who holds it.
//
// It owns one file, metadata.db (bbolt), and no directory beside it. Blobs, layers, rootfs and snapshots are nodes.
// Holders are names that keep nodes alive. Images record which nodes a reference stands for.
//
// Its invariant (I5 in docs/on-disk.md): a node's record lives exactly as long as it has a holder. A transaction that
// would leave a record without a holder, or a hold without a record, fails and changes nothing.
//
// The surprising rule: releasing the last hold deletes the record, in the same transaction. There is no other way to
// delete a node. Its bytes become garbage, and the package that owns the directory sweeps them.
//
// # Which transaction to take
//
// Changes of UpdateDeferred wait up to a tenth of a second before they reach the disk. Until then they are pending, in
// one open write transaction. The ways to read differ in how they treat pending changes:
//
//	View           commits them first, then sees them. The default.
//	ViewPending    sees them and leaves them pending. For a few records on a path
//	               that runs often; writers wait meanwhile.
//	ViewCommitted  does not see them and leaves them pending. For code that then
//	               deletes bytes: a crash undoes what is pending.
//
// The ways to write differ in when they return and in whether the function may run again:
//
//	Batch           returns when the change is durable; may run it again. The
//	                default: callers that arrive together share the disk's time.
//	Update          returns when the change is durable; runs it once. For a
//	                function with effects outside of the transaction.
//	UpdateDeferred  returns at once, with a function that waits until the change
//	                is durable; may run it again. For releases that come by the
//	                hundred while the caller holds a lock.
//
// Flush commits what is pending and waits for it.
//
// No transaction may be open while a caller's callback runs or a stream is sent: containerd deletes inside a listing,
// and a read transaction that stays open keeps the file from growing. Listings are therefore read in pages.
package metadata
