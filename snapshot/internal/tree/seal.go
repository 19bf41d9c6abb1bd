package tree

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// sealMagic is the type and version at the beginning of a seal. After it come: the record as JSON, from which a lost
// database is rebuilt; the number of entries; the entries, sorted by path; and the XXH3-64 of all bytes before it, in
// big-endian order. Numbers are varints, and strings have their length before them.
const sealMagic = "tank seal 1\n"

// maxSeal is the largest size of a seal in bytes. It is enough for tens of millions of entries.
const maxSeal = 4 << 30

// List calls visit for each entry of a list, in the order of their paths, and returns the first error. An entry is
// valid until visit returns.
type List func(visit func(*entry.Entry) error) error

// ListOf returns a list of entries in memory.
func ListOf(es []*entry.Entry) List {
	return func(visit func(*entry.Entry) error) error {
		for _, e := range es {
			if err := visit(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// WriteSeal writes a new seal at a path, and syncs it if sync is true. record is the future record in the database,
// but without the name of the directory, which is not known yet. entries must have exactly count entries, otherwise
// the error is of class errdefs.ErrInternal. For a seal of more than 4 GiB the error is of class
// errdefs.ErrFailedPrecondition.
func WriteSeal(path string, record any, count int, entries List, sync bool) error {
	header, err := json.Marshal(record)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	h := xxh3.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, h), 1<<18)
	w.WriteString(sealMagic)
	buf := append(binary.AppendUvarint(nil, uint64(len(header))), header...)
	buf = binary.AppendUvarint(buf, uint64(count))
	w.Write(buf)
	size := int64(len(sealMagic) + len(buf))
	err = entries(func(e *entry.Entry) error {
		buf = AppendEntry(buf[:0], e)
		count--
		if size += int64(len(buf)); size > maxSeal-8 {
			return fmt.Errorf("seal %s: more than %d bytes: %w", path, int64(maxSeal), errdefs.ErrFailedPrecondition)
		}
		_, err := w.Write(buf)
		return err
	})
	if err != nil {
		return err
	}
	if count != 0 {
		return fmt.Errorf("seal %s: %d entries too few: %w", path, count, errdefs.ErrInternal)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if _, err := f.Write(binary.BigEndian.AppendUint64(nil, h.Sum64())); err != nil {
		return err
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close()
}

// AppendEntry appends an entry in the format of a seal.
func AppendEntry(b []byte, e *entry.Entry) []byte {
	str := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	str(e.Path)
	str(e.Type.String())
	for _, v := range []uint64{uint64(e.Mode), uint64(e.UID), uint64(e.GID), e.Rdev} {
		b = binary.AppendUvarint(b, v)
	}
	for _, v := range []int64{e.Sec, e.Nsec, e.Size, int64(e.Seq)} {
		b = binary.AppendVarint(b, v)
	}
	str(e.Target)
	str(e.Inode)
	var flags uint64
	if e.Implied {
		flags |= 1
	}
	if e.Opaque {
		flags |= 2
	}
	b = binary.AppendUvarint(b, flags)
	b = append(b, e.Hash[:]...)
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		str(k)
		str(e.Xattrs[k])
	}
	return b
}
