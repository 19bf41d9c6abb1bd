package copies

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/regular"
)

const (
	// version is the version of the files that this program writes.
	version = 1
	// head is the first line of a file, before the version.
	head = "tank records "
	// tail is the last line of a file, before the number of records.
	tail = "records: "
	// maxFile bounds the size of a file that is read, in bytes. An image takes one or two kilobytes of it.
	maxFile = 256 << 20
)

var table = crc32.MakeTable(crc32.Castagnoli)

// file is one file of records.
type file struct {
	path string
	fs   fsys.FS
	mu   lockorder.Mutex // held while the file is compared and replaced
}

func newFile(root, name string, fs fsys.FS) *file {
	return &file{
		path: filepath.Join(root, name), fs: cmp.Or(fs, fsys.OS), mu: lockorder.Mutex{Rank: lockorder.Index},
	}
}

func (f *file) name() string { return filepath.Base(f.path) }

// update writes the file and syncs it, if it differs from what it should be. records returns the records, which
// have no newline in them. It is called while the file is locked, so that of several calls the last one has the
// latest records. A file that nobody needs, because there are no records, is not made. valid reports whether a
// record is not damaged; otherwise nothing is written.
func (f *file) update(records func() ([][]byte, error), valid func(record []byte) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := records()
	if err == nil {
		err = f.write(all, valid)
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("file %s: %w", f.name(), err))
	}
	return nil
}

func (f *file) write(records [][]byte, valid func(record []byte) bool) error {
	text := format(records)
	old, err := regular.ReadFile(f.path, maxFile)
	if err == nil && bytes.Equal(old, text) || errors.Is(err, os.ErrNotExist) && len(records) == 0 {
		return nil
	}
	for _, r := range records {
		if !valid(r) {
			return fmt.Errorf("damaged record %.60q in the database: %w", r, errdefs.ErrDataLoss)
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil:
	case errdefs.IsDataLoss(err): // not a regular file, or too large: it is no copy of anything
		if err := f.fs.RemoveTree(f.path, func() error { return os.RemoveAll(f.path) }); err != nil {
			return err
		}
	default:
		return err
	}
	return f.replace(text)
}

// replace writes a new file beside the former one and renames it.
func (f *file) replace(text []byte) error {
	temporary := f.path + ".new"
	if err := f.fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	made, err := f.fs.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = made.Write(text)
	if err == nil {
		err = made.Sync()
	}
	if err = errors.Join(err, made.Close()); err == nil {
		err = f.fs.Rename(temporary, f.path)
	}
	if err != nil {
		_ = f.fs.Remove(temporary) // the next update does it otherwise
		return err
	}
	return f.fs.SyncDir(filepath.Dir(f.path))
}

func format(records [][]byte) []byte {
	size := 64
	for _, r := range records {
		size += len(r) + 10
	}
	text := fmt.Appendf(make([]byte, 0, size), "%s%d\n", head, version)
	for _, r := range records {
		text = append(append(append(append(text, sum(r)...), ' '), r...), '\n')
	}
	return fmt.Appendf(text, "%s%d\n", tail, len(records))
}

// read returns the records that can be read. whole is true if these are all that were written. A missing file has no
// records and is not whole. read returns errdefs.ErrFailedPrecondition for a file of a newer version.
func (f *file) read() (records [][]byte, whole bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := regular.ReadFile(f.path, maxFile)
	switch {
	case errors.Is(err, os.ErrNotExist), errdefs.IsDataLoss(err):
		return nil, false, nil
	case err != nil:
		return nil, false, errclass.Ensure(fmt.Errorf("file %s: %w", f.name(), err))
	}
	records, whole, err = parse(text)
	if err != nil {
		return nil, false, fmt.Errorf("file %s: %w", f.name(), err)
	}
	return records, whole, nil
}

// sum returns the checksum of a record as it stands in a file.
func sum(record []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(record, table)) }

func parse(text []byte) (records [][]byte, whole bool, err error) {
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	number, begun := bytes.CutPrefix(first, []byte(head))
	n, nerr := strconv.Atoi(string(number))
	if begun && nerr == nil && n > version {
		return nil, false, cause.Mark(fmt.Errorf("of version %d, made by a newer Tank: %w", n,
			errdefs.ErrFailedPrecondition), cause.Newer, "")
	}
	whole = begun && nerr == nil && n == version
	if !begun { // the first line is lost, or damaged
		rest = text
	}
	damaged := false
	for {
		line, more, found := bytes.Cut(rest, []byte("\n"))
		if !found { // cut, or after the last line
			return records, false, nil
		}
		if count, last := bytes.CutPrefix(line, []byte(tail)); last {
			n, err := strconv.Atoi(string(count))
			return records, whole && !damaged && err == nil && n == len(records) && len(more) == 0, nil
		}
		begin, record, _ := bytes.Cut(line, []byte(" "))
		if string(begin) == sum(record) {
			records = append(records, record)
		} else {
			damaged = true
		}
		rest = more
	}
}
