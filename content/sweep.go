package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
)

// Sweep deletes the bytes of blobs without a record, and ingests that nobody can resume or whose holder is not live. Commits
// and hits wait while it renames what it found to staging/, not while it deletes. It returns what it removed.
func (s *Store) Sweep(ctx context.Context) (Stats, error) {
	var stats Stats
	blobs, err := s.sweepBlobs(&stats)
	if err != nil {
		return stats, fmt.Errorf("content: sweep: %w", err)
	}
	ingests, err := s.sweepIngests(&stats)
	if err != nil {
		return stats, fmt.Errorf("content: sweep: %w", err)
	}
	for _, path := range append(blobs, ingests...) {
		s.trash.remove(path)
	}
	if err := ctx.Err(); err != nil {
		return stats, err // the trash goes on
	}
	s.trash.wait()
	return stats, nil
}

// candidate is a path below blobs/ and the digest that it names, "" when it names none.
type candidate struct {
	path   string
	digest digest.Digest
}

func (s *Store) sweepBlobs(stats *Stats) (moved []string, err error) {
	all, err := s.listBlobs()
	if err != nil {
		return nil, err
	}
	found, err := s.unrecorded(all)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if found, err = s.unrecorded(found); err != nil {
		return nil, err
	}
	for _, c := range found {
		fi, err := os.Lstat(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return moved, err
		}
		path, err := s.trash.move(c.path)
		if err != nil {
			return moved, err
		}
		moved = append(moved, path)
		stats.Blobs++
		if fi.Mode().IsRegular() {
			stats.Bytes += fi.Size()
		}
	}
	return moved, nil
}

// listBlobs lists what is below blobs/, each algorithm's directory. It follows no symlink.
func (s *Store) listBlobs() ([]candidate, error) {
	root := filepath.Join(s.root, "blobs")
	algs, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var all []candidate
	for _, alg := range algs {
		dir := filepath.Join(root, alg.Name())
		if !alg.IsDir() {
			all = append(all, candidate{path: dir})
			continue
		}
		es, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			d := digest.Digest(alg.Name() + ":" + e.Name())
			if d.Validate() != nil {
				d = ""
			}
			all = append(all, candidate{filepath.Join(dir, e.Name()), d})
		}
	}
	return all, nil
}

// unrecorded returns those of cs that no record stands for.
func (s *Store) unrecorded(cs []candidate) (out []candidate, err error) {
	err = s.db.View(func(tx *metadata.Tx) error {
		for _, c := range cs {
			if c.digest != "" {
				_, err := tx.Blob(c.digest)
				if err == nil || errdefs.IsDataLoss(err) { // a record that can't be read is Check's to report
					continue
				}
				if !errdefs.IsNotFound(err) {
					return err
				}
			}
			out = append(out, c)
		}
		return nil
	})
	return out, err
}

func (s *Store) sweepIngests(stats *Stats) (moved []string, err error) {
	dirs, err := s.ingestDirs()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		stored, keep := s.keep(dir)
		if keep {
			continue
		}
		size := int64(0)
		if fi, err := os.Lstat(filepath.Join(dir, "data")); err == nil {
			size = fi.Size()
		}
		path, err := s.moveIdle(dir, stored)
		if err != nil {
			return moved, err
		}
		if path != "" {
			moved = append(moved, path)
			stats.Ingests++
			stats.Bytes += size
		}
	}
	return moved, nil
}

// keep says whether an ingest is worth keeping, and returns its stored ref if it has a right one. Nobody can resume, list or
// abort one without.
func (s *Store) keep(dir string) (stored string, keep bool) {
	st, err := readIngest(dir)
	if err != nil || s.ingestDir(st.Ref) != dir {
		return "", false
	}
	h, _, ok := splitRef(st.Ref)
	if !ok {
		return st.Ref, false
	}
	return st.Ref, h == metadata.Containerd || s.opts.LiveHolder == nil || s.opts.LiveHolder(h)
}

// moveIdle moves an ingest to staging/ unless a writer is open for it; then it returns "".
func (s *Store) moveIdle(dir, stored string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for open := range s.writers { // by path: the ref of one that is being opened may not be written yet
		if open == stored || s.ingestDir(open) == dir {
			return "", nil
		}
	}
	path, err := s.trash.move(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return path, err
}

// discard moves path to staging/ and has it deleted. It returns fs.ErrNotExist when path is not there.
func (s *Store) discard(path string) error {
	moved, err := s.trash.move(path)
	if err == nil {
		s.trash.remove(moved)
	}
	return err
}

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

// trash deletes by a rename first, and then in the background.
type trash struct {
	dir string
	seq atomic.Uint64

	mu   sync.Mutex
	busy int
	idle chan struct{} // closed when busy falls to 0; nil unless somebody waits
}

const trashPrefix = "content-"

// move gives path a name in staging/ and returns it. A symlink is moved, not followed.
func (t *trash) move(path string) (string, error) {
	name := fmt.Sprintf("%s%x-%x", trashPrefix, time.Now().UnixNano(), t.seq.Add(1))
	moved := filepath.Join(t.dir, name)
	err := os.Rename(path, moved)
	if errors.Is(err, fs.ErrNotExist) {
		// Either path is not there, or somebody took staging/ away as a whole.
		if mkErr := os.Mkdir(t.dir, 0o700); mkErr == nil {
			err = os.Rename(path, moved)
		}
	}
	return moved, err
}

// remove deletes a path in staging/, later.
func (t *trash) remove(path string) {
	t.mu.Lock()
	t.busy++
	t.mu.Unlock()
	go func() {
		if err := os.RemoveAll(path); err != nil {
			log.L.WithError(err).WithField("path", path).Warn("staging is left to the next opening")
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.busy--; t.busy == 0 && t.idle != nil {
			close(t.idle)
			t.idle = nil
		}
	}()
}

// wait returns when nothing is left to delete.
func (t *trash) wait() {
	t.mu.Lock()
	if t.busy == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	<-idle
}

// empty deletes what an earlier process left.
func (t *trash) empty() error {
	es, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			t.remove(filepath.Join(t.dir, e.Name()))
		}
	}
	return nil
}
