package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/metadata"
)

// Check hashes all recorded blobs, and reports every one whose file is missing, is not a regular
// file, or has another size or digest. Bytes without a record are not a fault. Check itself fails
// only if the database cannot be read or ctx ends.
func (s *Store) Check(ctx context.Context, report func(metadata.Fault)) error {
	for after := ""; ; {
		var keys []string
		err := s.db.View(func(tx *metadata.Tx) error {
			keys = tx.Keys(metadata.KindBlob, after, pageSize)
			return nil
		})
		if err != nil {
			return err
		}
		for _, key := range keys {
			if err := s.CheckBlob(ctx, digest.Digest(key), report); err != nil {
				return err
			}
		}
		if len(keys) < pageSize {
			return nil
		}
		after = keys[len(keys)-1]
	}
}

// CheckBlob does what Check does for one blob. A blob without a record has no fault.
func (s *Store) CheckBlob(ctx context.Context, d digest.Digest, report func(metadata.Fault)) error {
	err := s.checkBlob(ctx, d)
	if !errdefs.IsDataLoss(err) {
		return err
	}
	damage := metadata.DifferentBytes
	if errors.Is(err, errMissing) {
		damage = metadata.MissingBytes
	}
	report(metadata.Fault{
		Damage: damage, Node: metadata.BlobNode(d), Mend: metadata.MendDownload, Err: fmt.Errorf("blob %s: %w", d, err),
	})
	return nil
}

// checkBlob returns a fault as an error of class errdefs.ErrDataLoss. It returns nil if the blob
// was released since it was listed.
func (s *Store) checkBlob(ctx context.Context, d digest.Digest) error {
	if err := validate(d); err != nil {
		return fault(err)
	}
	record := func() (b metadata.Blob, err error) {
		err = s.db.View(func(tx *metadata.Tx) (err error) {
			b, err = tx.Blob(d)
			return err
		})
		return b, err
	}
	b, err := record()
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return fault(err)
	}
	err = s.hash(ctx, b)
	if err != nil {
		if _, gone := record(); errdefs.IsNotFound(gone) {
			return nil
		}
	}
	return err
}

var errMissing = fault(errors.New("file is missing"))

// fault returns err as a fault, without the class that err has.
func fault(err error) error { return fmt.Errorf("%v: %w", err, errdefs.ErrDataLoss) }

// hash compares the bytes of a blob with its record. Its errors are those of checkBlob.
func (s *Store) hash(ctx context.Context, b metadata.Blob) error {
	if b.Digest == "" {
		return fault(errors.New("record is empty"))
	}
	f, err := openFile(s.Path(b.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return errMissing
	}
	if err != nil {
		return fault(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return fault(err)
	case !fi.Mode().IsRegular():
		return fault(errors.New("not a regular file"))
	case fi.Size() != b.Size:
		return fault(fmt.Errorf("%d bytes instead of %d", fi.Size(), b.Size))
	}
	h := b.Digest.Algorithm().Digester()
	if _, err := io.Copy(h.Hash(), ctxReader{watched(ctx), f}); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		return fault(err)
	}
	if d := h.Digest(); d != b.Digest {
		return fault(fmt.Errorf("its bytes have digest %s", d))
	}
	return nil
}

// watched returns a function for a ctxReader that counts each read as progress.
func watched(ctx context.Context) func() error {
	return func() error {
		interrupt.Step(ctx)
		return ctx.Err()
	}
}

// ctxReader is a Reader that fails once ended returns an error.
type ctxReader struct {
	ended func() error
	io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
