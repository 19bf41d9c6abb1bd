// Package record reads and writes the durable records of snapshots, from which a lost database is
// rebuilt.
//
// On disk it owns the file record in each directory snapshots/<number>: one line for each state of
// the snapshot that was recorded, the last one in force.
//
// Its invariant: what was synced is never written again. A new line is appended, and a long file is
// replaced by a new one, so a crash at any time leaves the last synced line whole.
//
// The surprising rule: the database is the truth, and a record is read only when the database is
// lost. A record may be older than the database's, never newer, except for a snapshot that is being
// made.
package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata"
)

// Name is the name of the file in the directory of a snapshot.
const Name = "record"

const (
	// version is the version of the lines that this program writes.
	version = 1
	// maxFile bounds the size of a file that is read, in bytes. A line is mostly shorter than 1 KiB.
	maxFile = 64 << 20
	// longFile is the size from which a file is replaced instead of continued.
	longFile = 64 << 10
)

// Record is what a line has: everything from which the snapshot is recorded again. A line does not have the
// name of its directory: Read sets Dir or RecordDir by where the file is.
type Record struct {
	metadata.Snapshot
	// Content is true if the directory has the content of the snapshot (Snapshot.Dir), and not only its record.
	Content bool `json:"content,omitempty"`
	// Holders are the holders of the snapshot.
	Holders []metadata.Holder `json:"holders"`
}

// format returns the line of a record: "tank snapshot", the version, the XXH3-64 of the JSON, the JSON.
func format(r Record) ([]byte, error) {
	r.Dir, r.RecordDir = "", ""
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: durable record: %w", r.Key, err)
	}
	return fmt.Appendf(nil, "tank snapshot %d %016x %s\n", version, xxh3.Hash(text), text), nil
}

// errNewer is the error for a line that a newer version wrote.
var errNewer = fmt.Errorf("written by a newer version: %w", errdefs.ErrFailedPrecondition)

// parse returns the record in a line. name is that of its directory.
func parse(text []byte, name string) (r Record, err error) {
	damaged := fmt.Errorf("damaged line: %w", errdefs.ErrDataLoss)
	rest, ok := bytes.CutPrefix(text, []byte("tank snapshot "))
	number, rest, ok2 := bytes.Cut(rest, []byte(" "))
	sum, object, ok3 := bytes.Cut(rest, []byte(" "))
	n, err := strconv.Atoi(string(number))
	switch {
	case !ok || !ok2 || err != nil:
		return r, damaged
	case n > version:
		return r, errNewer
	case !ok3 || string(sum) != fmt.Sprintf("%016x", xxh3.Hash(object)):
		return r, damaged
	}
	if err := json.Unmarshal(object, &r); err != nil || r.Key == "" {
		return Record{}, damaged
	}
	r.Dir, r.RecordDir = "", name
	if r.Content {
		r.Dir, r.RecordDir = name, ""
	}
	return r, nil
}

// Create writes the first line of a record into dir, a directory that is being built. It syncs nothing.
func Create(dir string, r Record) error {
	text, err := format(r)
	if err != nil {
		return err
	}
	return errclass.Ensure(os.WriteFile(filepath.Join(dir, Name), text, 0o600))
}

// Append writes the present state of a snapshot to the record in dir, and makes a missing record. It
// returns when the line is on the disk, unless sync is false: then a power cut may undo it.
// Calls for one directory must not overlap.
func Append(fs fsys.FS, dir string, r Record, sync bool) error {
	text, err := format(r)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, Name)
	fi, err := os.Lstat(path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return errclass.Ensure(err)
	case err != nil, !fi.Mode().IsRegular(), fi.Size() > longFile, !endsLine(path, fi.Size()):
		return replace(fs, path, text)
	}
	f, err := fs.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && sync {
		err = f.Sync()
	}
	return errclass.Ensure(errors.Join(err, f.Close()))
}

// endsLine reports whether a file ends with a newline. After a crash the last line may be incomplete.
func endsLine(path string, size int64) bool {
	f, err := regular.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	last := make([]byte, 1)
	_, err = f.ReadAt(last, size-1)
	return err == nil && last[0] == '\n'
}

// Replace gives the directory dir a record that has only the present state of a snapshot. It returns when the
// record is on the disk. Calls for one directory must not overlap.
func Replace(fs fsys.FS, dir string, r Record) error {
	text, err := format(r)
	if err != nil {
		return err
	}
	return replace(fs, filepath.Join(dir, Name), text)
}

// replace gives a directory a new record. It is always synced: a rename that reaches the disk before the
// bytes would lose the former record.
func replace(fs fsys.FS, path string, text []byte) error {
	next := path + ".new"
	if err := fs.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := fs.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fs.Rename(next, path) //nolint:forbidigo // inside an entry that has its position
	}
	if err == nil {
		err = fs.SyncDir(filepath.Dir(path))
	}
	return errclass.Ensure(err)
}

// Read returns the record in the directory snapshots/<name>: the last line that is whole. The fields Dir and
// RecordDir come from the name of the directory. The error is errdefs.ErrNotFound if there is no file,
// errdefs.ErrFailedPrecondition if a newer version wrote the last line, and errdefs.ErrDataLoss if no line is
// whole.
func Read(dir string) (Record, error) {
	r, _, err := read(dir)
	return r, err
}

// read also reports whether all lines are whole, but for what a crash leaves of the last one.
func read(dir string) (r Record, whole bool, err error) {
	text, err := regular.ReadFile(filepath.Join(dir, Name), maxFile)
	name := filepath.Base(dir)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.Join(err, errdefs.ErrNotFound)
	}
	if err != nil {
		return r, false, errclass.Ensure(fmt.Errorf("snapshots/%s: durable record: %w", name, err))
	}
	whole, err = true, fmt.Errorf("no line: %w", errdefs.ErrDataLoss)
	for len(text) > 0 {
		one, rest, complete := bytes.Cut(text, []byte("\n"))
		if !complete || len(rest) == 0 && bytes.IndexByte(one, 0) >= 0 {
			break // a crash leaves a part of a line that was not synced, or zeros in its place
		}
		next, lineErr := parse(one, name)
		switch {
		case lineErr == nil:
			r, err = next, nil
		case errors.Is(lineErr, errNewer):
			r, err = Record{}, lineErr
		default:
			whole = false
		}
		text = rest
	}
	if err != nil {
		err = fmt.Errorf("snapshots/%s: durable record: %w", name, err)
	}
	return r, whole && err == nil, err
}

// Check returns errdefs.ErrDataLoss if a line of the record in dir is damaged. A missing record, and a last
// line that a crash has cut, are no damage.
func Check(dir string) error {
	_, whole, err := read(dir)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
		return nil
	case err != nil:
		return err
	case !whole:
		return fmt.Errorf("snapshots/%s: durable record: damaged line: %w", filepath.Base(dir), errdefs.ErrDataLoss)
	}
	return nil
}

// isEntry reports whether a name in snapshots/ is that of a snapshot.
func isEntry(name string) bool {
	return name != "" && strings.Trim(name, "0123456789") == ""
}
