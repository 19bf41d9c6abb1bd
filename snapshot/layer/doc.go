// Package layer has the layers of a root: it unpacks them from blobs, serves them, and assembles root file systems.
//
// On disk it owns layers/<number>/, which has fs, seal and sometimes order and aside in it, and
// rootfs/<algorithm>/<hex> with <hex>.seal. A fix-up is an entry of layers/ too: a small directory that
// overlay stacks right above a layer.
//
// Its invariant: a layer has a record only after its diff ID was verified, and does not change afterwards. A record is
// provisional until its bytes are known to be on the disk. If another process left it provisional, the bytes are
// compared with the seal before they are served.
//
// The surprising rule: a layer is unpacked once, without regard to its parents, and its key is its diff
// ID. What depends on a parent (directories that the tar only implies, hard links to lower files) goes
// into fix-ups. Other packages must not assume how the bytes of a layer are stored: they get values to
// mount (Lower), to read (Plan, Root, CopyStack) and to compare (Check).
//
// # The life of a layer
//
// Announced: Announce names a pair of a blob and a diff ID before anything is downloaded. This writes nothing. An
// announcement is lost when the process ends, and means only that the unpack can begin early.
//
// Following: when an ingest of the blob opens (Ingested), or somebody claims the layer (Unpack, Claim), an unpack
// begins. If the blob is not complete, the unpack follows the ingest file while it grows. It writes below a staged name
// in layers/ and computes the diff ID as it goes. If it fails, its directory is deleted and the next ingest or claim
// begins again.
//
// Unclaimed: the unpack is complete, sealed and synced as far as its seal, but no record names it, because nobody has
// claimed it yet. It waits below its staged name. A sweep deletes it 10 minutes later, or as soon as its blob is gone.
//
// Provisional: a claim (Unpack or Claim) verifies the diff ID, gives the directory its position, writes the record and
// the claimer's hold in one transaction, and returns. From now on the layer can be served by this process, which knows
// that it has written the bytes. They may not be on the disk: a layer that a process left provisional is in doubt when
// the next one opens the root, and is compared with its seal before it is served. If they differ, it is unpacked again
// from its blob; the record then names a new directory, and mounts that exist keep the old one.
//
// Durable: some time later, and at the latest when Sync is called, one syncfs writes the file system to
// the disk for all layers that were provisional before it, and one transaction marks their records.
//
// Consumed: Assemble with AssembleOptions.Consume moves the inodes of layers that only its own holder holds into the
// rootfs that it builds. Such a layer loses its record first.
//
// Swept: a layer lives as long as it has a holder: a snapshot, a pull, an image. The transaction that releases the last
// hold deletes the record. Its directory is then garbage, which whoever released it, or the next sweep, moves to a
// staged name and deletes in the background.
package layer
