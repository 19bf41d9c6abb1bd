package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/metadata"
)

// adopt records and holds a blob whose bytes are at its path without a record: the process was
// killed right before it recorded the blob. It hashes them again, because they may never have
// reached the disk. It returns errdefs.ErrNotFound if the file is missing or has other bytes. If
// the descriptor has a size and the file has another one, the file is not read.
func (hs *HolderStore) adopt(ctx context.Context, desc ocispec.Descriptor) error {
	d := desc.Digest
	defer hs.s.dir.KeepSweepsAway()()
	path := hs.s.Path(d)
	f, err := hs.s.fs.OpenFile(path, readFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %s: %w", d, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w: %w", d, err, errdefs.ErrNotFound)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return errclass.Ensure(fmt.Errorf("blob %s: %w", d, err))
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("blob %s: not a regular file: %w", d, errdefs.ErrNotFound)
	}
	if desc.Size > 0 && fi.Size() != desc.Size || !fits(f, fi.Size()) {
		return fmt.Errorf("blob %s: its file has %d bytes: %w", d, fi.Size(), errdefs.ErrNotFound)
	}
	got, err := d.Algorithm().FromReader(ctxReader{watched(ctx), f})
	if ctx.Err() != nil {
		return fmt.Errorf("blob %s: %w", d, ctx.Err())
	}
	if err != nil || got != d {
		return fmt.Errorf("blob %s: its file has other bytes: %w", d, errdefs.ErrNotFound)
	}
	err = f.Sync()
	if err == nil {
		err = hs.s.fs.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("blob %s: %w", d, err))
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(fi, now) {
		return fmt.Errorf("blob %s: its file was replaced while it was hashed: %w", d, errdefs.ErrNotFound)
	}
	err = hs.s.db.Batch(func(tx *metadata.Tx) error {
		_, err := hs.record(tx, d, fi.Size(), nil)
		return err
	})
	if err == nil {
		hs.noteHit(ctx, d, fi.Size())
	}
	return err
}

// fits reports whether the file system is large enough for all bytes of the file. A larger file has
// holes, which no download makes, and hashing it could take hours.
func fits(f diskspace.File, size int64) bool {
	space, err := diskspace.OfFile(f)
	return err != nil || size <= space.Total
}
