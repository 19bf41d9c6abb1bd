package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Recovered is what the directories say when the database is lost: records of what is intact, and what no record can be
// made of.
type Recovered struct {
	Layers []metadata.Layer // and fix-ups
	Rootfs []metadata.Rootfs
	// BrokenRootfs are the manifests of rootfs that are not what their seals say, or have none.
	BrokenRootfs []digest.Digest
	// BrokenLayers are the names below layers/ of which the same is true.
	BrokenLayers []string
	// Snapshots are the directories that containers wrote, below snapshots/. Whose they were only the database knew.
	Snapshots []string
	// LastID is the largest number that names a directory.
	LastID uint64
}

// Recover reads layers/, rootfs/ and snapshots/ of a root whose database is to be made again. Each directory is compared
// with its seal, which has its record. It changes nothing.
func Recover(ctx context.Context, root string) (*Recovered, error) {
	s := &Store{root: root}
	r := &Recovered{}
	names, err := s.recoverable("layers", r)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var l metadata.Layer
		if s.recover(ctx, s.path("layers", name, "fs"), s.path("layers", name, "seal"), &l) && l.Key != "" &&
			(!l.Ordered || tree.CheckOrder(ctx, s.path("layers", name)) == nil) {
			l.Dir, l.Durable = name, false
			r.Layers = append(r.Layers, l)
		} else {
			r.BrokenLayers = append(r.BrokenLayers, name)
		}
	}
	if err := ctx.Err(); err != nil { // a cancelled comparison makes a directory look broken
		return nil, err
	}
	if r.Snapshots, err = s.recoverable("snapshots", r); err != nil {
		return nil, err
	}
	algorithms, err := s.recoverable("rootfs", r)
	if err != nil {
		return nil, err
	}
	for _, algorithm := range algorithms {
		names, err := s.recoverable("rootfs/"+algorithm, r)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".seal") {
				continue
			}
			dir := s.path("rootfs", algorithm, name)
			d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), name)
			if d.Validate() != nil {
				continue
			}
			var f metadata.Rootfs
			if s.recover(ctx, dir, dir+".seal", &f) && f.Manifest == d {
				f.Durable = false
				r.Rootfs = append(r.Rootfs, f)
			} else {
				r.BrokenRootfs = append(r.BrokenRootfs, d)
			}
		}
	}
	return r, ctx.Err()
}

func (s *Store) recoverable(dir string, r *Recovered) ([]string, error) {
	entries, err := os.ReadDir(s.path(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if rootdir.IsStaged(e.Name()) || rootdir.IsLostFound(e.Name()) {
			continue
		}
		names = append(names, e.Name())
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && dir != "rootfs" {
			r.LastID = max(r.LastID, id)
		}
	}
	return names, nil
}

// recover reads the record in a seal, if the directory is what the seal says.
func (s *Store) recover(ctx context.Context, dir, seal string, record any) bool {
	sealed, err := tree.OpenSeal(ctx, seal)
	if err == nil {
		err = s.intact(ctx, dir, seal)
	}
	if err == nil {
		err = json.Unmarshal(sealed.Record, record)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("recover: %s is not what its seal says", dir)
	}
	return err == nil
}
