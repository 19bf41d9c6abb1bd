// Package nodes opens, makes, measures and deletes files, directories, links and devices below an open directory.
//
// It differs from package beneath in one point: beneath makes single system calls on an inode and needs the rights for
// them, while nodes does whole operations, copies content, and also works for an ordinary user whose own files have a
// mode that denies him access.
//
// It owns nothing on disk. Its invariant: it follows no symbolic link inside a tree, so that another process that
// writes to the tree cannot lead it outside.
//
// The surprising rule: opening may change a mode on disk. If the mode of a file denies its owner access and the process
// is not root, File adds the missing mode bits, and Close removes them.
package nodes
