package layer

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// unclaimedLife is how long a finished unpack waits to be claimed.
const unclaimedLife = 10 * time.Minute

// DropUnclaimed deletes finished unpacks that were not claimed for 10 minutes, or whose blobs are gone.
func (s *Store) DropUnclaimed(now time.Time) error {
	var errs []error
	for _, j := range s.unpacks.finished() {
		if _, here := s.blobs.Size(j.pair.Blob.Digest); here && now.Sub(j.ended) <= unclaimedLife {
			continue
		}
		s.unpacks.forget(j)
		if j.take() {
			errs = append(errs, s.dir.Trash(j.dir))
		}
	}
	return errors.Join(errs...)
}

// Unrecorded returns the paths of layers, and of directories and seals of rootfs, that have no record. The caller makes
// sure that no directory gets its position meanwhile (rootdir.Dir.BeginSweep).
func (s *Store) Unrecorded(tx *metadata.Tx) (layers, rootfs []string, err error) {
	layers, err = s.dir.Unrecorded(rootdir.Layers, func() (map[string]bool, error) {
		dirs := s.readers.Waiting()
		for _, key := range tx.Keys(metadata.KindLayer, "", -1) {
			l, err := tx.Layer(key)
			if err != nil {
				return nil, err
			}
			dirs[l.Dir] = true
		}
		return dirs, nil
	})
	if err != nil {
		return nil, nil, err
	}
	rootfs, err = unrecordedRootfs(tx, s.dir)
	return layers, rootfs, err
}

// unrecordedRootfs returns the paths of directories and seals of rootfs that have no record.
func unrecordedRootfs(tx *metadata.Tx, dir *rootdir.Dir) ([]string, error) {
	algs, err := os.ReadDir(dir.Path(rootdir.Rootfs))
	if err != nil {
		return nil, err
	}
	var unrecorded []string
	for _, alg := range algs {
		if rootdir.IsStaged(alg.Name()) || rootdir.IsLostFound(alg.Name()) {
			continue
		}
		names, err := os.ReadDir(dir.Path(rootdir.Rootfs, alg.Name()))
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if rootdir.IsStaged(n.Name()) {
				continue
			}
			d := digest.NewDigestFromEncoded(digest.Algorithm(alg.Name()), strings.TrimSuffix(n.Name(), ".seal"))
			if _, err := tx.Rootfs(d); errdefs.IsNotFound(err) {
				unrecorded = append(unrecorded, dir.Path(rootdir.Rootfs, alg.Name(), n.Name()))
			}
		}
	}
	return unrecorded, nil
}
