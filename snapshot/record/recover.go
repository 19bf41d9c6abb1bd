package record

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/rootdir"
)

// Recovered has what the records of a root say, for the rebuild of its database.
type Recovered struct {
	// Records has one record for each key, by key. Each has the Dir or RecordDir that it was read from.
	Records []Record
	// Superseded has the records whose key a later record has. Their directories belong to no snapshot that a
	// containerd can name.
	Superseded []Record
	// Unreadable are the names of the directories below snapshots/ without a readable record.
	Unreadable []string
}

// Recover reads the records of all snapshots below root. It changes nothing. It returns
// errdefs.ErrFailedPrecondition if a newer version wrote a record, because this version does not know what that
// says.
func Recover(ctx context.Context, root string) (*Recovered, error) {
	pool := filepath.Join(root, rootdir.Snapshots)
	entries, err := os.ReadDir(pool)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errclass.Ensure(err)
	}
	r := &Recovered{}
	byKey := map[string]Record{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, errclass.Ensure(err)
		}
		if !isEntry(e.Name()) || !e.IsDir() {
			continue
		}
		rec, err := Read(filepath.Join(pool, e.Name()))
		switch {
		case errdefs.IsFailedPrecondition(err):
			return nil, err
		case err != nil:
			r.Unreadable = append(r.Unreadable, e.Name())
			continue
		}
		if other, twice := byKey[rec.Key]; twice {
			if rec.Updated.Before(other.Updated) {
				rec, other = other, rec
			}
			r.Superseded = append(r.Superseded, other)
		}
		byKey[rec.Key] = rec
	}
	for _, rec := range byKey {
		r.Records = append(r.Records, rec)
	}
	slices.SortFunc(r.Records, func(a, b Record) int { return strings.Compare(a.Key, b.Key) })
	return r, nil
}
