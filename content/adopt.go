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

// adopt records and holds a blob whose bytes lie in their place without a record, as a kill leaves them right before the
// record is written. They are hashed again, because nothing says whether they ever reached the disk. It returns
// errdefs.ErrNotFound when there are none, or others; bytes of another size than the descriptor's are not read. A
// descriptor of size 0 has none.
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
		return fmt.Errorf("blob %s: not a file: %w", d, errdefs.ErrNotFound)
	}
	if desc.Size > 0 && fi.Size() != desc.Size || !fits(f, fi.Size()) {
		return fmt.Errorf("blob %s: a file of %d bytes lies there: %w", d, fi.Size(), errdefs.ErrNotFound)
	}
	got, err := d.Algorithm().FromReader(ctxReader{ctx.Err, f})
	if ctx.Err() != nil {
		return fmt.Errorf("blob %s: %w", d, ctx.Err())
	}
	if err != nil || got != d {
		return fmt.Errorf("blob %s: what lies there is something else: %w", d, errdefs.ErrNotFound)
	}
	err = f.Sync()
	if err == nil {
		err = hs.s.fs.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("blob %s: %w", d, err))
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(fi, now) {
		return fmt.Errorf("blob %s: replaced meanwhile: %w", d, errdefs.ErrNotFound)
	}
	return hs.s.db.Batch(func(tx *metadata.Tx) error {
		_, err := hs.record(tx, d, fi.Size(), nil)
		return err
	})
}

// fits reports whether a file can be all data: one that is larger than its file system has a hole, which no download
// makes and which takes hours to hash.
func fits(f diskspace.File, size int64) bool {
	space, err := diskspace.OfFile(f)
	return err != nil || size <= space.Total
}
