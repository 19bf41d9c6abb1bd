package content

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Recover reads all files below blobs/ of a root whose database is rebuilt. It returns the records
// of the blobs whose bytes have the digest in their name, and the paths of all other files. It
// changes nothing.
func Recover(ctx context.Context, root string) (blobs []metadata.Blob, damaged []string, err error) {
	dir := filepath.Join(root, "blobs")
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || rootdir.IsStaged(e.Name()) || rootdir.IsLostFound(e.Name()) {
			if e != nil && e.IsDir() && (rootdir.IsStaged(e.Name()) || rootdir.IsLostFound(e.Name())) {
				return fs.SkipDir
			}
			return err
		}
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(path))), e.Name())
		b, err := recoverBlob(ctx, path, d)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			log.G(ctx).WithError(err).Warnf("recover: blob %s is damaged", d)
			damaged = append(damaged, path)
		default:
			blobs = append(blobs, b)
		}
		return nil
	})
	if os.IsNotExist(err) {
		return nil, nil, nil
	}
	return blobs, damaged, errclass.Ensure(err)
}

// recoverBlob returns the record of the blob in a file, or an error if its digest is not d.
func recoverBlob(ctx context.Context, path string, d digest.Digest) (metadata.Blob, error) {
	if err := validate(d); err != nil {
		return metadata.Blob{}, err
	}
	f, err := openFile(path)
	if err != nil {
		return metadata.Blob{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return metadata.Blob{}, err
	}
	if !fi.Mode().IsRegular() || !fits(f, fi.Size()) {
		return metadata.Blob{}, fmt.Errorf("a file of mode %s and %d bytes can't be a blob: %w",
			fi.Mode(), fi.Size(), errdefs.ErrDataLoss)
	}
	got, err := d.Algorithm().FromReader(ctxReader{ctx.Err, f})
	if err != nil {
		return metadata.Blob{}, err
	}
	if got != d {
		return metadata.Blob{}, fmt.Errorf("digest is %s: %w", got, errdefs.ErrDataLoss)
	}
	return metadata.Blob{Digest: d, Size: fi.Size(), Created: fi.ModTime(), Updated: fi.ModTime()}, nil
}
