// Package overlay interprets stacks of directories in overlay's form, that is, with whiteouts and opaque directories.
// Merged reads a stack as one tree, Merge lays one directory over another, and PlanFixup finds the paths at which
// overlay would show something other than the result of applying the tars of the layers.
//
// It owns nothing on disk; callers name the directories. Its invariant: the plan of a fix-up depends only on the layer
// and on the content of the stack below it, so that equal facts give equal fix-ups.
//
// The surprising rule: nothing is mounted. The package reads a stack with plain system calls, which gives the same
// result in a process without the rights to mount.
package overlay
