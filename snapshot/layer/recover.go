package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass"
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
	r := &Recovered{}
	c := collector{root: root, found: r}
	names, err := c.names("layers")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var l metadata.Layer
		if c.read(ctx, c.path("layers", name, "fs"), c.path("layers", name, "seal"), &l) && l.Key != "" &&
			(!l.Ordered || tree.CheckOrder(ctx, c.path("layers", name)) == nil) {
			l.Dir, l.Durable = name, false
			r.Layers = append(r.Layers, l)
		} else {
			r.BrokenLayers = append(r.BrokenLayers, name)
		}
	}
	if err := ctx.Err(); err != nil { // a cancelled comparison makes a directory look broken
		return nil, err
	}
	if r.Snapshots, err = c.names("snapshots"); err != nil {
		return nil, err
	}
	algorithms, err := c.names("rootfs")
	if err != nil {
		return nil, err
	}
	for _, algorithm := range algorithms {
		names, err := c.names("rootfs/" + algorithm)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".seal") {
				continue
			}
			dir := c.path("rootfs", algorithm, name)
			d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), name)
			if d.Validate() != nil {
				continue
			}
			var f metadata.Rootfs
			if c.read(ctx, dir, dir+".seal", &f) && f.Manifest == d {
				f.Durable = false
				r.Rootfs = append(r.Rootfs, f)
			} else {
				r.BrokenRootfs = append(r.BrokenRootfs, d)
			}
		}
	}
	return r, ctx.Err()
}

// collector reads the pools of a root without its database.
type collector struct {
	root  string
	found *Recovered
}

func (c *collector) path(elem ...string) string {
	return filepath.Join(append([]string{c.root}, elem...)...)
}

// names lists the entries of a directory below the root and keeps the largest number among them.
func (c *collector) names(dir string) ([]string, error) {
	entries, err := os.ReadDir(c.path(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("recover: %w", err))
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if rootdir.IsStaged(e.Name()) || rootdir.IsLostFound(e.Name()) {
			continue
		}
		names = append(names, e.Name())
		if id, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && dir != "rootfs" {
			c.found.LastID = max(c.found.LastID, id)
		}
	}
	return names, nil
}

// read reads the record in a seal, if the directory is what the seal says.
func (c *collector) read(ctx context.Context, dir, seal string, record any) bool {
	sealed, err := tree.OpenSeal(ctx, seal)
	if err == nil {
		err = compare(ctx, dir, seal)
	}
	if err == nil {
		err = json.Unmarshal(sealed.Record, record)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("recover: %s is not what its seal says", dir)
	}
	return err == nil
}
