package snapshot_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/continuity/fs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// BenchmarkPrepare prepares containers above an image of six layers with 12,000 files and 200 MB in all. It measures
// both modes and, as "native", the copy that containerd's native snapshotter makes, each on a file system that can
// clone files (XFS) and on one that cannot (ext4).
func BenchmarkPrepare(b *testing.B) {
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q"}, {"mkfs.ext4", "-q", "-E", "nodiscard"}} {
		for _, way := range []string{"overlay", "directory", "native"} {
			b.Run(mkfs[0]+"/"+way, func(b *testing.B) { benchmarkPrepare(b, loopFS(b, 6<<30, mkfs...), way) })
		}
	}
}

func benchmarkPrepare(b *testing.B, dir, way string) {
	db, err := metadata.Open(filepath.Join(dir, "metadata.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	blobs := memory{}
	s, err := snapshot.Open(dir, db, blobs, &snapshot.Options{Directory: way != "overlay"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := errors.Join(s.Close(), db.Close()); err != nil {
			b.Fatal(err)
		}
	}()
	var layers []layer.Pair
	for l := range 6 {
		items := []Item{D("d"), D(fmt.Sprint("d/", l))}
		for i := range 2000 {
			items = append(items,
				F(fmt.Sprintf("d/%d/%d/%d", l, i%50, i), strings.Repeat(string(rune('a'+l)), 2000+i*15)))
		}
		layers = append(layers, blobs.add(b, Tar(b, items...)))
	}
	sn := s.For(holder)
	top, err := extract(ctx, sn, &world{Store: s}, layers, false, "ns")
	if err != nil {
		b.Fatal(err)
	}
	native := filepath.Join(dir, "native")
	mounts, err := sn.Prepare(ctx, "parent", top)
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		key := fmt.Sprint("key ", i)
		if way == "native" {
			err = fs.CopyDir(native, mounts[0].Source)
		} else {
			_, err = sn.Prepare(ctx, key, top)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if way == "native" {
			err = os.RemoveAll(native)
		} else {
			err = sn.Remove(ctx, key)
		}
		if _, serr := s.Sweep(ctx); err != nil || serr != nil {
			b.Fatal(err, serr)
		}
		b.StartTimer()
	}
}
