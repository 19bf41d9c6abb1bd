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
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
)

// Recovered is what can be recovered from the directories of a root that has lost its database.
type Recovered struct {
	Layers []metadata.Layer  // records of intact layers and fix-ups
	Rootfs []metadata.Rootfs // records of intact rootfs
	// BrokenRootfs are the manifests of rootfs that differ from their seals or have none.
	BrokenRootfs []digest.Digest
	// BrokenLayers are the names below layers/ of layers that differ from their seals or have none.
	BrokenLayers []string
	// Snapshots are the names below snapshots/ of what containers wrote. Only the database knew whose they were.
	Snapshots []string
	// LastID is the largest number that names a directory.
	LastID uint64
	// Failed is the first I/O error with which reading a broken layer or rootfs ended. nil: all were read.
	Failed error
}

// Recover reads layers/, rootfs/ and snapshots/ of a root for a new database. It compares each directory with its seal,
// which has the record in it. It changes nothing.
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

// read reads the record in a seal, and reports whether it could and the directory equals the seal.
func (c *collector) read(ctx context.Context, dir, seal string, record any) bool {
	sealed, err := tree.OpenSeal(ctx, seal)
	if err == nil {
		err = compare(ctx, dir, seal)
	}
	if err == nil {
		err = json.Unmarshal(sealed.Record, record)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warnf("recover: %s differs from its seal", dir)
		if c.found.Failed == nil && errors.Is(err, unix.EIO) {
			c.found.Failed = fmt.Errorf("directory %s: %w", dir, err)
		}
	}
	return err == nil
}
