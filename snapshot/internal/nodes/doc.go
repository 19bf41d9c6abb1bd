// Package nodes opens, makes, measures and deletes nodes of a file system below a directory that is open: files,
// directories, links and devices.
//
// It owns nothing on disk. Its invariant: no symbolic link inside a tree is followed, so that whoever writes to the
// tree leads nothing outside.
//
// The surprising rule: an ordinary user owns files and directories that their mode keeps from their owner. A File has
// the rights that it needs for as long as it is open, and Close takes them back.
package nodes
