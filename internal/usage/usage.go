// Package usage counts what a holder keeps in a root, and how much of the disk that takes.
//
// It owns nothing on disk and changes nothing. Its invariant: a path is exclusive exactly if a release of
// the holder would delete it.
//
// The surprising rule: snapshots hold layers, so a holder also keeps the layers below its snapshots. It
// keeps such a layer alone only if no other holder has a snapshot on it.
package usage

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// Usage is what a holder keeps: numbers of records, and the paths of their files and directories.
type Usage struct {
	Blobs, Layers, Rootfs, Snapshots int // Layers includes fix-ups

	Paths []Path
}

// Path is a file or a directory that a holder keeps.
type Path struct {
	Path      string // absolute
	Exclusive bool   // no other holder keeps it
}

// Of counts what a holder keeps, according to the records of a root.
func Of(tx *metadata.Tx, root string, h metadata.Holder) (*Usage, error) {
	c := counter{tx: tx, root: root, alone: map[metadata.Holder]bool{h: true}}
	layers, err := c.snapshots(h)
	if err != nil {
		return nil, err
	}
	for _, key := range tx.Held(h, metadata.KindLayer, "", -1) {
		layers[key] = true
	}
	for key := range layers {
		l, err := tx.Layer(key)
		if err != nil {
			return nil, err
		}
		c.found.Layers++
		c.add(metadata.LayerNode(key), filepath.Join(root, "layers", l.Dir))
	}
	for _, key := range tx.Held(h, metadata.KindBlob, "", -1) {
		b, err := tx.Blob(digest.Digest(key))
		if err != nil {
			return nil, err
		}
		c.found.Blobs++
		path := filepath.Join(root, "blobs", b.Digest.Algorithm().String(), b.Digest.Encoded())
		c.add(metadata.BlobNode(b.Digest), path)
	}
	for _, key := range tx.Held(h, metadata.KindRootfs, "", -1) {
		r, err := tx.Rootfs(digest.Digest(key))
		if err != nil {
			return nil, err
		}
		c.found.Rootfs++
		path := filepath.Join(root, "rootfs", r.Manifest.Algorithm().String(), r.Manifest.Encoded())
		c.add(metadata.RootfsNode(r.Manifest), path, path+".seal")
	}
	return &c.found, nil
}

// counter is one call of Of.
type counter struct {
	tx    *metadata.Tx
	root  string
	alone map[metadata.Holder]bool // the holder, and each of its snapshots that no other holder keeps
	found Usage
}

// exclusive reports whether no other holder keeps a record.
func (c *counter) exclusive(n metadata.Node) bool {
	return !slices.ContainsFunc(c.tx.Holders(n), func(h metadata.Holder) bool { return !c.alone[h] })
}

func (c *counter) add(n metadata.Node, paths ...string) {
	exclusive := c.exclusive(n)
	for _, p := range paths {
		c.found.Paths = append(c.found.Paths, Path{p, exclusive})
	}
}

// snapshots counts the snapshots of a holder, and returns the keys of the layers and fix-ups below them.
func (c *counter) snapshots(h metadata.Holder) (layers map[string]bool, err error) {
	layers = map[string]bool{}
	for _, key := range c.tx.Held(h, metadata.KindSnapshot, "", -1) {
		s, err := c.tx.Snapshot(key)
		if err != nil {
			return nil, err
		}
		c.found.Snapshots++
		if s.Dir != "" {
			c.add(metadata.SnapshotNode(key), filepath.Join(c.root, "snapshots", s.Dir))
		}
		c.alone[metadata.SnapshotHolder(key)] = c.exclusive(metadata.SnapshotNode(key))
		for _, l := range c.tx.Held(metadata.SnapshotHolder(key), metadata.KindLayer, "", -1) {
			layers[l] = true
		}
	}
	return layers, nil
}

// Exclusive returns the paths that no other holder keeps.
func (u *Usage) Exclusive() (paths []string) {
	for _, p := range u.Paths {
		if p.Exclusive {
			paths = append(paths, p.Path)
		}
	}
	return paths
}

// Sizes has the bytes that paths take on the disk, measured as du does. It measures a path once, even if
// several holders keep it.
type Sizes map[string]int64

// Of returns the size of a path in bytes.
func (s Sizes) Of(ctx context.Context, path string) (int64, error) {
	if size, ok := s[path]; ok {
		return size, nil
	}
	size, err := snapshot.DiskUsage(ctx, path)
	if err == nil {
		s[path] = size
	}
	return size, err
}
