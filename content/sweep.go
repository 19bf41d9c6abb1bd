package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/leftover"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// Sweep deletes the bytes of blobs without a record, and ingests that cannot be resumed or whose
// holder is not live. Commits and hits wait while it renames what it found, not while it deletes.
// It returns what it removed. If something cannot be removed, it goes on, returns a leftover.Error
// that names it, and the next Sweep tries again.
func (s *Store) Sweep(ctx context.Context) (stats Stats, err error) {
	ctx, end := observe.Begin(ctx, s.opts.Observe, observe.Event{Kind: observe.Sweep, Subject: "content"})
	defer func() {
		end(observe.Result{Err: err, Bytes: stats.Bytes, Count: int64(stats.Blobs + stats.Ingests)})
	}()
	s.db.Flush()
	blobs, berr := s.sweepBlobs(&stats)
	ingests, ierr := s.sweepIngests(&stats)
	moved := append(blobs, ingests...)
	if err = leftover.Join(berr, ierr); err != nil {
		err = errclass.Ensure(fmt.Errorf("content: sweep: %w", err))
	}
	return stats, errclass.Ensure(leftover.Join(err, s.dir.Empty(ctx, moved...)))
}

// Count counts the bytes of disk blocks that deletions free from now on, until end is called. end
// waits for the deletions that have begun, and returns the sum.
func (s *Store) Count() (end func() int64) {
	counted := s.dir.Count()
	return func() int64 {
		s.dir.Wait()
		return counted()
	}
}

// candidate is a path below blobs/ and the digest that its name stands for, or "".
type candidate struct {
	path   string
	digest digest.Digest
}

// sweepBlobs moves the bytes of blobs without a record to the trash and returns their paths there.
func (s *Store) sweepBlobs(stats *Stats) (moved []string, err error) {
	all, err := s.listBlobs()
	if err != nil {
		return nil, err
	}
	found, err := s.unrecorded(all)
	if err == nil {
		found, err = s.withoutNeeded(found)
	}
	if err != nil || len(found) == 0 {
		return nil, err
	}
	defer s.dir.BeginSweep()()
	if found, err = s.unrecorded(found); err != nil {
		return nil, err
	}
	var errs []error
	for _, c := range found {
		fi, err := os.Lstat(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		path := ""
		if err == nil {
			path, err = s.dir.Aside(c.path)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		moved = append(moved, path)
		stats.Blobs++
		if fi.Mode().IsRegular() {
			stats.Bytes += fi.Size()
		}
	}
	return moved, errors.Join(errs...)
}

// withoutNeeded returns those of cs that Options.Needed does not name.
func (s *Store) withoutNeeded(cs []candidate) ([]candidate, error) {
	if len(cs) == 0 || s.opts.Needed == nil {
		return cs, nil
	}
	needed, err := s.opts.Needed()
	if err != nil {
		return nil, fmt.Errorf("keep blobs without a record: %w", err)
	}
	return slices.DeleteFunc(cs, func(c candidate) bool { return c.digest != "" && needed[c.digest] }), nil
}

// listBlobs lists the entries of each directory below blobs/. It follows no symlink.
func (s *Store) listBlobs() ([]candidate, error) {
	root := filepath.Join(s.root, "blobs")
	algs, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var all []candidate
	for _, alg := range algs {
		if rootdir.IsLostFound(alg.Name()) {
			continue
		}
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
			if rootdir.IsLostFound(e.Name()) {
				continue
			}
			d := digest.Digest(alg.Name() + ":" + e.Name())
			if d.Validate() != nil {
				d = ""
			}
			all = append(all, candidate{filepath.Join(dir, e.Name()), d})
		}
	}
	return all, nil
}

// unrecorded returns those of cs that have no durable record.
func (s *Store) unrecorded(cs []candidate) (out []candidate, err error) {
	err = s.db.ViewCommitted(func(tx *metadata.Tx) error {
		for _, c := range cs {
			if c.digest != "" {
				_, err := tx.Blob(c.digest)
				if err == nil || errdefs.IsDataLoss(err) { // Check reports a record that cannot be read
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

// sweepIngests moves ingests that are not worth keeping to the trash and returns their paths there.
func (s *Store) sweepIngests(stats *Stats) (moved []string, err error) {
	dirs, err := s.ingestDirs()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, dir := range dirs {
		stored, keep := s.keep(dir)
		if keep {
			continue
		}
		size := int64(0)
		if fi, err := os.Lstat(filepath.Join(dir, "data")); err == nil {
			size = fi.Size()
		}
		path, idle, err := s.moveIdle(dir, stored)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if idle {
			moved = append(moved, path)
			stats.Ingests++
			stats.Bytes += size
		}
	}
	return moved, errors.Join(errs...)
}

// keep reports whether Sweep keeps the ingest in dir. stored is the ref in its state, or "" if the
// state cannot be read. An ingest without a valid ref cannot be resumed, listed or aborted.
func (s *Store) keep(dir string) (stored string, keep bool) {
	st, err := readIngest(dir)
	if err != nil {
		return "", false
	}
	h, _, ok := splitRef(st.Ref)
	if !ok {
		return st.Ref, false
	}
	return st.Ref, h == metadata.Containerd || s.opts.LiveHolder == nil || s.opts.LiveHolder(h)
}

// moveIdle moves an ingest to the trash, unless its writer is open or it does not exist. idle
// reports whether it was moved.
func (s *Store) moveIdle(dir, stored string) (path string, idle bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for open := range s.writers { // compare paths, too: an ingest that is being opened may have no state yet
		if open == stored || s.ingestDir(open) == dir {
			return "", false, nil
		}
	}
	path, err = s.dir.Aside(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	return path, err == nil, err
}
