package content

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/fsys"
)

// stateHead is the first line of the file state, as JSON. The directory of an ingest has two files.
// The file data has the bytes so far; its modification time is the time of the last write. The file
// state is written once, before data is made, and is not synced. All of state after the first line
// is the stored ref. The directory is named after the hash of that ref, so readState detects a
// truncated state.
type stateHead struct {
	Total   int64     `json:"total,omitempty"` // announced bytes; 0 if unknown
	Started time.Time `json:"started"`
}

// openData opens the data file of an ingest for reading and writing. It makes a new ingest if there
// is none, if the old one cannot be resumed, or if the old one was announced with another total. st
// is the state of the ingest, with the stored ref.
func (s *Store) openData(stored string, total int64) (f fsys.File, st content.Status, err error) {
	dir := s.ingestDir(stored)
	f, st, err = s.resumeData(dir)
	switch {
	case err == nil && (total == 0 || st.Total == 0 || total == st.Total):
		return f, st, nil
	case err == nil:
		f.Close()
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		return nil, st, err // the ingest itself may be good
	}
	if err := s.dir.Trash(dir); err != nil {
		return nil, st, err
	}
	return s.createData(dir, stored, total)
}

func (s *Store) resumeData(dir string) (fsys.File, content.Status, error) {
	st, err := readIngest(dir)
	if err != nil {
		return nil, st, err
	}
	f, err := s.fs.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, st, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: %w", f.Name(), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		f.Close()
		return nil, st, err
	}
	st.Offset = fi.Size()
	return f, st, nil
}

func (s *Store) createData(dir, stored string, total int64) (fsys.File, content.Status, error) {
	now := time.Now().UTC()
	st := content.Status{Ref: stored, Total: total, StartedAt: now, UpdatedAt: now}
	head, err := json.Marshal(stateHead{total, now})
	if err != nil {
		return nil, st, err
	}
	if err := s.fs.Mkdir(dir, 0o700); err != nil {
		return nil, st, err
	}
	state := append(append(head, '\n'), stored...)
	if err := fsys.WriteFile(s.fs, filepath.Join(dir, "state"), state, 0o600); err != nil {
		return nil, st, err
	}
	f, err := s.fs.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, st, err
}

// readIngest returns the state of the ingest in a directory, with the stored ref. If it returns no
// error, the ingest can be resumed. It returns fs.ErrNotExist if a file is missing,
// errdefs.ErrFailedPrecondition if one is not a regular file, and errdefs.ErrDataLoss if the state
// is damaged.
func readIngest(dir string) (st content.Status, err error) {
	// createData writes the state before it makes the data file. So without a data file, the state may be half written.
	fi, err := os.Lstat(filepath.Join(dir, "data"))
	if err != nil && !errors.Is(err, unix.ENOTDIR) { // readState has a better error for that
		return st, err
	}
	if st, err = readState(dir); err != nil {
		return st, err
	}
	if !fi.Mode().IsRegular() {
		return st, fmt.Errorf("%s/data: not a regular file: %w", dir, errdefs.ErrFailedPrecondition)
	}
	st.Offset = fi.Size()
	if fi.ModTime().After(st.UpdatedAt) {
		st.UpdatedAt = fi.ModTime()
	}
	return st, nil
}

func readState(dir string) (st content.Status, err error) {
	fi, err := os.Lstat(dir)
	if err != nil {
		return st, err
	}
	if !fi.IsDir() {
		return st, fmt.Errorf("%s: not a directory: %w", dir, errdefs.ErrFailedPrecondition)
	}
	path := filepath.Join(dir, "state")
	text, err := readSmall(path)
	if err != nil {
		return st, err
	}
	line, stored, ok := strings.Cut(text, "\n")
	if !ok || digest.FromString(stored).Encoded() != filepath.Base(dir) {
		return st, fmt.Errorf("%s: belongs to another ingest: %w", path, errdefs.ErrDataLoss)
	}
	var head stateHead
	if err := json.Unmarshal([]byte(line), &head); err != nil {
		return st, fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	if head.Total < 0 || head.Started.IsZero() {
		return st, fmt.Errorf("%s: total %d, started %s: %w", path, head.Total, head.Started, errdefs.ErrDataLoss)
	}
	return content.Status{Ref: stored, Total: head.Total, StartedAt: head.Started, UpdatedAt: head.Started}, nil
}

// maxSmall is the largest size of a state file. A ref arrives in a gRPC message, which has at most
// 16 MiB.
const maxSmall = 16<<20 + 4<<10

func readSmall(path string) (string, error) {
	f, err := openFile(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxSmall {
		return "", fmt.Errorf("%s: not a small regular file: %w", path, errdefs.ErrFailedPrecondition)
	}
	b := make([]byte, fi.Size())
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return string(b[:n]), err
}

// sum is the SHA-256 hash of a data file. Bytes that an earlier writer left are hashed in the
// background.
type sum struct {
	ready   chan struct{}   // closed when the bytes of the earlier writer are hashed, or err is set
	stopped <-chan struct{} // closed when the hash is no longer needed
	stop    context.CancelFunc

	hash hash.Hash // must not be used before ready is closed
	err  error
}

// sum begins to hash the first size bytes of f. It outlives the end of ctx.
func (s *Store) sum(ctx context.Context, f io.ReaderAt, size int64) *sum {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &sum{ready: make(chan struct{}), stopped: ctx.Done(), stop: stop, hash: sha256.New()}
	if size == 0 {
		close(m.ready)
		return m
	}
	var r io.Reader = io.NewSectionReader(f, 0, size)
	if s.rehash != nil {
		r = s.rehash(r)
	}
	go func() {
		defer close(m.ready)
		n, err := io.CopyBuffer(m.hash, ctxReader{watched(ctx), r}, make([]byte, 256<<10))
		if err == nil && n < size {
			err = io.ErrUnexpectedEOF
		}
		m.err = err
	}()
	return m
}

// wait returns when the hash is ready or no longer needed, or after at most d.
func (m *sum) wait(d time.Duration) {
	select {
	case <-m.ready:
	case <-m.stopped:
	case <-time.After(d):
	}
}

// digest returns the digest of the bytes so far, or "" if the hash is not ready. Called with the
// writer's mu held.
func (m *sum) digest() digest.Digest {
	select {
	case <-m.ready:
		if m.err == nil {
			return digest.NewDigest(digest.SHA256, m.hash)
		}
	default:
	}
	return ""
}
