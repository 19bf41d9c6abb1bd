// Package tree has lists of the content of a directory tree: in memory as nodes, on disk as seals and orders.
//
// It defines the format of the files seal and order of a layer and of the seal of a rootfs; callers choose their paths,
// apart from the names order and aside. Its invariant: a list is sorted by path, "." first, and reading a damaged file
// ends with an error of class errdefs.ErrDataLoss, never with a wrong list.
//
// The surprising rule: lists are functions that call a visitor for each entry. A layer may have a million entries, so
// no reader here keeps them in memory unless its documentation states it.
package tree
