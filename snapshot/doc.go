// Package snapshot serves containerd's snapshots.Snapshotter over the layers of a root, and applies
// layers to snapshots.
//
// On disk it owns snapshots/<number>/{fs,work}, the directories that containers write to. Package layer, which a Store
// opens, owns the layers below them.
//
// Its invariants (I1 to I4 and I6 in docs/on-disk.md): a directory gets its position before its record is written, and
// the record is deleted before the directory; a snapshot is visible to a holder only if that holder holds it.
//
// The surprising rule: it mounts nothing. It returns descriptions of mounts, and containerd mounts them. Several
// snapshots may be mounted above the same layers at the same time.
//
// # The life of a snapshot
//
// Prepared: Prepare and View record a snapshot that the caller holds, above a committed parent. They first
// complete the stack of the parent: each layer in it that needs a fix-up above its own parent gets one. An active
// snapshot gets a directory with fs and work, which overlay mounts as upper and work directory above the stack; in
// directory mode fs is a copy of all that the stack shows. A view has no directory unless it needs its own root
// directory on top, for attributes that overlay would otherwise not show.
//
// Extracting: containerd prepares an active snapshot for each layer of an image, with a label that names the target.
// Apply has the layer unpacked by package layer, or waits for an unpack that already runs, and records that the
// snapshot stands on that layer. Its own directory stays empty. If the layer is known, Prepare can answer so that
// containerd neither downloads nor applies it (docs/adr/0004-known-layers-are-adopted.md).
//
// Committed: Commit gives the snapshot a new name and makes it a parent for others. No directory moves. A snapshot that
// stands on a layer loses its empty directory. The fix-up of its layer above the parent is planned in the background,
// so that the next Prepare rarely waits for it.
//
// Removed: Remove ends the hold of the caller. If that was the last hold, it deletes the record and the records of
// layers and fix-ups that only this snapshot held. Directories are deleted in the background after the transaction is
// on the disk. A sweep deletes directories that have no record.
package snapshot
