package metadata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata/internal/boltfile"
)

// Hold is one hold of one holder.
type Hold struct {
	Holder Holder
	Node   Node
}

// Salvaged has the records that could be read from a database. Records that others refer to may be missing.
type Salvaged struct {
	Blobs     []Blob
	Layers    []Layer
	Rootfs    []Rootfs
	Snapshots []Snapshot
	Images    []Image
	Pulls     []Pull
	Holds     []Hold
	// Pairs are the blobs that were verified to decompress to a diff ID.
	Pairs map[digest.Digest]digest.Digest
	// Facts has everything else that is recorded about the root: flags and bindings. See PutFact.
	Facts map[string][]byte
	// LastID is the last number that TakeIDs gave out.
	LastID uint64
	// Complete is true if the database has no fault, so that no record was left out.
	Complete bool
	// AllHolds is true if Holds lacks none. The database lists each hold twice, so it may be damaged nevertheless.
	AllHolds bool
}

// Empty reports whether no record was found.
func (s *Salvaged) Empty() bool {
	return len(s.Blobs)+len(s.Layers)+len(s.Rootfs)+len(s.Snapshots)+len(s.Images) == 0
}

// Salvage reads what is readable of a database that no process has open, page by page: of a damaged page, only its own
// records are lost. A file that is not a database yields no records and no error. The error is os.ErrNotExist for a
// missing file, errdefs.ErrDataLoss for a file that is too large, and errdefs.ErrFailedPrecondition for a database of a
// newer version, because this version does not know its records.
func Salvage(path string) (*Salvaged, error) {
	s := &Salvaged{Pairs: map[digest.Digest]digest.Digest{}, Facts: map[string][]byte{}}
	f, err := regular.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return s, err
	}
	if fi.Size() > maxFile {
		return s, fmt.Errorf("metadata %s: %d bytes are too many for a database: %w",
			path, fi.Size(), errdefs.ErrDataLoss)
	}
	var newer error
	damaged, seen := map[string]bool{}, map[string]bool{} // buckets
	visitor := boltfile.Visitor{
		Entry: func(bucket string, key, value []byte) {
			if bucket == string(bucketMeta) && string(key) == string(keySchema) {
				newer = notNewer(value)
			}
			if !s.add(bucket, string(key), value) {
				damaged[bucket] = true
			}
		},
		Sequence: func(bucket string, n uint64) {
			seen[bucket] = true
			if bucket == string(bucketMeta) {
				s.LastID = n
			}
		},
		Fault: func(bucket string) { damaged[bucket] = true },
	}
	if err := boltfile.Salvage(f, fi.Size(), visitor, func(string, ...any) {}); err != nil {
		return s, nil // not a database: nothing was found
	}
	if newer != nil {
		return s, fmt.Errorf("metadata %s: %w", path, newer)
	}
	intact := func(bucket []byte) bool { return seen[string(bucket)] && !damaged[string(bucket)] }
	s.AllHolds = !damaged[""] && (intact(bucketHolds) || intact(bucketHeld))
	s.Complete = len(damaged) == 0 && s.sound(path)
	return s, nil
}

// sound reports whether the records agree with each other, which a check of the pages does not show.
func (s *Salvaged) sound(path string) bool {
	db, err := Open(path, &Options{ReadOnly: true})
	if err != nil {
		return false
	}
	return errors.Join(db.Sound(), db.Close()) == nil
}

// add adds the record in one entry of a bucket. It reports whether the entry is valid.
func (s *Salvaged) add(bucket, key string, value []byte) (ok bool) {
	switch bucket {
	case string(bucketBlobs):
		return decodeInto(&s.Blobs, value, func(b Blob) bool {
			return b.Digest.String() == key && b.Digest.Validate() == nil
		})
	case string(bucketLayers):
		return decodeInto(&s.Layers, value, func(l Layer) bool { return l.Key == key && isName(l.Dir) })
	case string(bucketRootfs):
		return decodeInto(&s.Rootfs, value, func(r Rootfs) bool {
			return r.Manifest.String() == key && r.Manifest.Validate() == nil
		})
	case string(bucketSnapshots):
		return decodeInto(&s.Snapshots, value, func(sn Snapshot) bool {
			return sn.Key == key && (sn.Dir == "" || isName(sn.Dir))
		})
	case string(bucketImages):
		return decodeInto(&s.Images, value, func(i Image) bool { return i.Ref == key && i.valid() })
	case string(bucketPulls):
		return decodeInto(&s.Pulls, value, func(p Pull) bool { return p.Ref == key })
	case string(bucketHolds):
		p := strings.SplitN(key, "\x00", 3)
		return len(p) == 3 && s.addHold(Holder(p[0]), Kind(p[1]), p[2])
	case string(bucketHeld):
		p := strings.Split(key, "\x00")
		return len(p) == 3 && s.addHold(Holder(p[2]), Kind(p[0]), p[1])
	case string(bucketVerified):
		blob, diffID := digest.Digest(key), digest.Digest(value)
		if blob.Validate() != nil || diffID.Validate() != nil {
			return false
		}
		s.Pairs[blob] = diffID
	case string(bucketMeta):
		if key != string(keySchema) {
			s.Facts[key] = bytes.Clone(value)
		}
	}
	return true // also for unknown buckets, and for indexes, which are built again from the records
}

// addHold adds a hold. It reports whether the kind of the node is known.
func (s *Salvaged) addHold(h Holder, k Kind, key string) bool {
	if nodeBuckets[k] == nil {
		return false
	}
	s.Holds = append(s.Holds, Hold{h, Node{k, key}})
	return true
}

// AddImage adds the record of an image as ImageRecords returned it, unless there is a later one of this image. It
// reports whether the record is valid.
func (s *Salvaged) AddImage(record []byte) bool {
	var added []Image
	if !decodeInto(&added, record, Image.valid) {
		return false
	}
	i := slices.IndexFunc(s.Images, func(i Image) bool { return i.Ref == added[0].Ref })
	switch {
	case i < 0:
		s.Images = append(s.Images, added[0])
	case added[0].Updated.After(s.Images[i].Updated):
		s.Images[i] = added[0]
	}
	return true
}

// AddBinding adds a binding as BindingRecords returned it, unless there is one with its ID. It reports whether the
// record is valid.
func (s *Salvaged) AddBinding(record []byte) bool {
	var added []Binding
	if !decodeInto(&added, record, func(b Binding) bool { return b.ID != "" && b.Holder.IsContainerd() }) {
		return false
	}
	if name := bindingPrefix + added[0].ID; s.Facts[name] == nil {
		s.Facts[name] = record
	}
	return true
}

// Containerds lists the holders of the bindings.
func (s *Salvaged) Containerds() (hs []Holder) {
	for name, value := range s.Facts {
		var b Binding
		if strings.HasPrefix(name, bindingPrefix) && json.Unmarshal(value, &b) == nil && b.Holder.IsContainerd() &&
			!slices.Contains(hs, b.Holder) {
			hs = append(hs, b.Holder)
		}
	}
	return hs
}

// decodeInto decodes a record and appends it if it is valid. It reports whether it did.
func decodeInto[T any](into *[]T, value []byte, valid func(T) bool) bool {
	var record T
	if json.Unmarshal(value, &record) != nil || !valid(record) {
		return false
	}
	*into = append(*into, record)
	return true
}

// isName reports whether a record's Dir is a name in a directory of the root.
func isName(s string) bool { return s != "" && s[0] != '.' && !strings.ContainsAny(s, "/\x00") }

// valid reports whether all digests of an image have a valid form.
func (i Image) valid() bool {
	all := []digest.Digest{i.Target.Digest}
	for _, p := range i.Platforms {
		all = append(append(all, p.Manifest.Digest, p.Config.Digest), p.DiffIDs...)
		for _, l := range p.Layers {
			all = append(all, l.Digest)
		}
	}
	return !slices.ContainsFunc(all, func(d digest.Digest) bool { return d.Validate() != nil })
}

// ImageRecords returns the records of all images as the database has them, by reference. They have no newline.
func ImageRecords(tx *Tx) [][]byte { return values(tx, bucketImages, "") }

// BindingRecords returns the records of all bindings as the database has them, by ID. They have no newline.
func BindingRecords(tx *Tx) [][]byte { return values(tx, bucketMeta, bindingPrefix) }

func values(tx *Tx, bucket []byte, prefix string) (all [][]byte) {
	c := tx.bolt.Bucket(bucket).Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		all = append(all, bytes.Clone(v))
	}
	return all
}

// PutFact stores one of Salvaged.Facts again.
func PutFact(tx *Tx, name string, value []byte) error {
	if name == string(keySchema) {
		return nil
	}
	return tx.bolt.Bucket(bucketMeta).Put([]byte(name), value)
}

// PutPull records a pull as Pulls returned it.
func PutPull(tx *Tx, p Pull) error { return tx.put(bucketPulls, "pull", p.Ref, p) }

// Build makes a database in the file at path, fills it and checks it. It replaces an unfinished one. No process may
// have the file open. After an error Build removes the file. It uses only FS of the options, which may be nil.
func Build(path string, opts *Options, fill func(*Tx) error) error {
	fs := fsys.OS
	if opts != nil {
		fs = cmp.Or(opts.FS, fs)
	}
	err := fs.Build(path, func() error { return build(fs, path, fill) }, synced)
	if err != nil {
		err = fmt.Errorf("metadata %s: %w", path, errors.Join(err, ignoreMissing(fs.Remove(path))))
	}
	return errclass.Ensure(err)
}

func build(fs fsys.FS, path string, fill func(*Tx) error) error {
	b, err := createFile(fs, path)
	if err != nil {
		return err
	}
	db := newDB(b, path, &Options{FS: fsys.OS}) // all of it is one Build
	if err := errors.Join(db.Update(fill), db.Close()); err != nil {
		return err
	}
	if db, err = Open(path, &Options{Existing: true}); err != nil {
		return err
	}
	return errors.Join(db.Sound(), db.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
