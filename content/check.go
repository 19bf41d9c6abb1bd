package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// Check reports every recorded blob whose file is missing, not a regular file, of another size or of another digest. Each
// fault is of class errdefs.ErrDataLoss and names the digest. Bytes without a record are no fault.
func (s *Store) Check(ctx context.Context, report func(error)) error {
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
			fault, err := s.checkBlob(ctx, digest.Digest(key))
			if err != nil {
				return err
			}
			if fault != "" {
				report(fmt.Errorf("blob %s: %s: %w", key, fault, errdefs.ErrDataLoss))
			}
		}
		if len(keys) < pageSize {
			return nil
		}
		after = keys[len(keys)-1]
	}
}

// checkBlob returns what is wrong with a blob, "" when nothing is, or when it was released meanwhile.
func (s *Store) checkBlob(ctx context.Context, d digest.Digest) (fault string, err error) {
	if err := validate(d); err != nil {
		return err.Error(), nil
	}
	record := func() (b metadata.Blob, err error) {
		err = s.db.View(func(tx *metadata.Tx) (err error) {
			b, err = tx.Blob(d)
			return err
		})
		return b, err
	}
	b, err := record()
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return err.Error(), nil
	}
	if fault, err = s.hash(ctx, b); fault == "" || err != nil {
		return "", err
	}
	if _, err := record(); errdefs.IsNotFound(err) {
		return "", nil
	}
	return fault, nil
}

func (s *Store) hash(ctx context.Context, b metadata.Blob) (fault string, err error) {
	if b.Digest == "" {
		return "record is empty", nil
	}
	f, err := openFile(s.Path(b.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return "file is missing", nil
	}
	if err != nil {
		return err.Error(), nil
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err.Error(), nil
	case !fi.Mode().IsRegular():
		return "not a regular file", nil
	case fi.Size() != b.Size:
		return fmt.Sprintf("%d bytes instead of %d", fi.Size(), b.Size), nil
	}
	h := b.Digest.Algorithm().Digester()
	if _, err := io.Copy(h.Hash(), ctxReader{ctx.Err, f}); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return "", cerr
		}
		return err.Error(), nil
	}
	if d := h.Digest(); d != b.Digest {
		return "content is " + d.String(), nil
	}
	return "", nil
}

// ctxReader ends when ended says so.
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
