package content

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/metadata"
)

// HandOver transfers unfinished ingests from one holder to another, except ingests whose writer is
// open. If the receiving holder already has an ingest with the same ref, HandOver keeps that one and
// deletes the other. A crash between the rename of an ingest and the rewrite of its state loses the
// ingest, so its bytes are downloaded again.
func (s *Store) HandOver(from, to metadata.Holder) error {
	dirs, err := s.ingestDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		st, err := readState(dir)
		if err != nil {
			continue // the ingest has ended, or Sweep removes it
		}
		if h, ref, ok := splitRef(st.Ref); ok && h == from {
			if err := s.handOver(dir, st.Ref, s.For(to).stored(ref)); err != nil {
				err = fmt.Errorf("ingest %.200q: hand over to %s: %w", ref, to, err)
				return errclass.Ensure(err)
			}
		}
	}
	return nil
}

// handOver moves the ingest in dir, which has the stored ref stored, to the stored ref next.
func (s *Store) handOver(dir, stored, next string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[stored] != nil {
		return nil
	}
	to := s.ingestDir(next)
	if _, err := os.Lstat(to); err == nil {
		return s.dir.Trash(dir)
	}
	text, err := readSmall(filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	head, _, _ := bytes.Cut([]byte(text), []byte("\n"))
	if err := s.fs.Rename(dir, to); err != nil {
		return err
	}
	state := filepath.Join(to, "state")
	if err := fsys.WriteFile(s.fs, state+".new", append(append(head, '\n'), next...), 0o600); err != nil {
		return err
	}
	return s.fs.Rename(state+".new", state)
}
