// Package tree has lists of what a directory tree contains: in memory as nodes, on disk as seals and orders.
//
// It defines the files seal and order of a layer and the seal of a rootfs, but not where they are. Its invariant: a
// list is sorted by path, "." first, and reading a damaged file ends with errdefs.ErrDataLoss, never with a wrong list.
//
// The surprising rule: lists are functions that call a visitor for each entry. A layer may have a million entries, and
// none of the readers here keeps them in memory unless its documentation says so.
package tree
