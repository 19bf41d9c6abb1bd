package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Recovered is what Recover found below blobs/.
type Recovered struct {
	Blobs   []metadata.Blob // records of the files whose bytes have the digest in their name
	Damaged []string        // the paths of all other files
	// Failed is the first I/O error with which reading a damaged file ended. nil: all were read.
	Failed error
}

// Recover reads all files below blobs/ of a root whose database is rebuilt. It changes nothing.
func Recover(ctx context.Context, root string) (*Recovered, error) {
	r := &Recovered{}
	dir := filepath.Join(root, "blobs")
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
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
			r.Damaged = append(r.Damaged, path)
			if r.Failed == nil && errors.Is(err, unix.EIO) {
				r.Failed = fmt.Errorf("blob %s: %w", d, err)
			}
		default:
			r.Blobs = append(r.Blobs, b)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		return nil, errclass.Ensure(err)
	}
	return r, nil
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
	got, err := d.Algorithm().FromReader(ctxReader{watched(ctx), f})
	if err != nil {
		return metadata.Blob{}, err
	}
	if got != d {
		return metadata.Blob{}, fmt.Errorf("digest is %s: %w", got, errdefs.ErrDataLoss)
	}
	return metadata.Blob{Digest: d, Size: fi.Size(), Created: fi.ModTime(), Updated: fi.ModTime()}, nil
}
