package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/follow"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
)

// stored returns the ref under which an ingest of the holder is kept: refs of different holders
// never collide. No holder contains a NUL byte, so the first one ends the holder.
func (hs *HolderStore) stored(ref string) string { return string(hs.holder) + "\x00" + ref }

// splitRef splits a stored ref into holder and ref.
func splitRef(stored string) (h metadata.Holder, ref string, ok bool) {
	holder, ref, ok := strings.Cut(stored, "\x00")
	return metadata.Holder(holder), ref, ok && holder != "" && ref != ""
}

// ingestDir returns the directory of an ingest. Its name is a hash, so any ref gives one valid
// name.
func (s *Store) ingestDir(stored string) string {
	return filepath.Join(s.root, "ingest", digest.FromString(stored).Encoded())
}

// Status returns the state of an ingest of the holder. It returns errdefs.ErrNotFound if there is
// none.
func (hs *HolderStore) Status(_ context.Context, ref string) (content.Status, error) {
	stored := hs.stored(ref)
	st, err := readIngest(hs.s.ingestDir(stored))
	if errors.Is(err, fs.ErrNotExist) {
		return content.Status{}, fmt.Errorf("ingest %.200q: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return content.Status{}, errclass.Ensure(fmt.Errorf("ingest %.200q: %w", ref, err))
	}
	return hs.status(st), nil
}

// status adds what only the open writer knows.
func (hs *HolderStore) status(st content.Status) content.Status {
	hs.s.mu.Lock()
	if w := hs.s.writers[st.Ref]; w != nil {
		st.Expected = w.ingest().Digest()
		st.Total = max(st.Total, w.total)
	}
	hs.s.mu.Unlock()
	_, st.Ref, _ = splitRef(st.Ref)
	return st
}

// ListStatuses lists the ingests of the holder. Filters can use the field "ref".
func (hs *HolderStore) ListStatuses(_ context.Context, fs ...string) ([]content.Status, error) {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, err
	}
	dirs, err := hs.s.ingestDirs()
	if err != nil {
		return nil, err
	}
	var sts []content.Status
	for _, dir := range dirs {
		st, err := readIngest(dir)
		if err != nil {
			continue // it has ended, or is incomplete after a crash and Sweep removes it
		}
		if h, _, ok := splitRef(st.Ref); !ok || h != hs.holder {
			continue
		}
		if st = hs.status(st); filter.Match(adaptStatus(st)) {
			sts = append(sts, st)
		}
	}
	return sts, nil
}

// WalkStatusRefs calls fn for the ref of each ingest of the holder. fn may abort the ingest.
func (hs *HolderStore) WalkStatusRefs(ctx context.Context, fn func(string) error) error {
	dirs, err := hs.s.ingestDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		st, err := readState(dir)
		if err != nil {
			continue
		}
		if h, ref, ok := splitRef(st.Ref); ok && h == hs.holder {
			if err := fn(ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// Abort deletes an ingest of the holder. If its writer is open, the writer can only be closed
// afterwards. It returns errdefs.ErrNotFound if there is no such ingest.
func (hs *HolderStore) Abort(_ context.Context, ref string) error {
	err := hs.s.abort(hs.stored(ref))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ingest %.200q: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("ingest %.200q: %w", ref, err))
	}
	return nil
}

// abort deletes an ingest. It returns fs.ErrNotExist if there is none.
func (s *Store) abort(stored string) error {
	s.mu.Lock()
	w := s.writers[stored]
	moved, err := s.dir.Aside(s.ingestDir(stored))
	if err == nil && w != nil {
		w.aborted.Store(true)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if w != nil {
		if m := w.sum.Load(); m != nil {
			m.stop()
		}
		// End the ingest before its file is cut, so that readers do not wait for bytes that are
		// lost. Cutting the file frees its space at once, although the writer has it open until
		// Close.
		w.ingest().End(follow.Ended, "aborted")
		if moved != "" {
			if err := s.truncate(filepath.Join(moved, "data")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.dir.Delete(moved)
				return err
			}
		}
	}
	s.dir.Delete(moved)
	return nil
}

// truncate cuts a file to no bytes.
func (s *Store) truncate(path string) error {
	f, err := s.fs.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(0), f.Close())
}

// ingestDirs lists the paths of the directories below ingest/.
func (s *Store) ingestDirs() ([]string, error) {
	dir := filepath.Join(s.root, "ingest")
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("content: %w", err))
	}
	paths := make([]string, 0, len(es))
	for _, e := range es {
		if !rootdir.IsStaged(e.Name()) && !rootdir.IsLostFound(e.Name()) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

func adaptStatus(st content.Status) filters.Adaptor {
	return filters.AdapterFunc(func(fieldpath []string) (string, bool) {
		if len(fieldpath) == 1 && fieldpath[0] == "ref" {
			return st.Ref, true
		}
		return "", false
	})
}
