// Package overlay knows what a stack of directories means that are in overlay's form, with its whiteouts and opaque
// directories: Merged looks through a stack, Merge lays one directory over another, and PlanFixup finds out where
// overlay would show something else than the tar of a layer describes.
//
// It owns nothing on disk; callers name the directories. Its invariant: the plan of a fix-up depends on nothing but the
// layer and the content of the stack below it, so that equal facts give equal fix-ups.
//
// The surprising rule: nothing is mounted. A stack is read with plain system calls, which gives the same result in a
// process without the rights to mount.
package overlay
