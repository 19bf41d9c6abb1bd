package snapshot

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// sealMagic begins a seal: what it is and its version. Then comes the record as JSON, from which a lost database can be
// made again, then the entries, sorted by path, each a sequence of varints
// and length-prefixed strings, and XXH3-64 of everything before it.
const sealMagic = "tank seal 1\n"

// writeSeal writes a new seal and makes it durable, unless sync is false. record is what the database will say, as far as
// it is known: where the directory lies is not.
func writeSeal(path string, record any, entries []*unpack.Entry, sync bool) error {
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
	buf = binary.AppendUvarint(buf, uint64(len(entries)))
	for _, e := range entries {
		buf = appendEntry(buf, e)
		if _, err := w.Write(buf); err != nil {
			return err
		}
		buf = buf[:0]
	}
	w.Write(buf)
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

func appendEntry(b []byte, e *unpack.Entry) []byte {
	str := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	str(e.Path)
	str(string(e.Type))
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

// readSeal reads a seal; errdefs.ErrDataLoss when it is damaged, errdefs.ErrNotFound when it is missing.
func readSeal(path string) ([]unpack.Entry, error) {
	entries, _, err := readSealed(path)
	return entries, err
}

// readSealed returns the record as well.
func readSealed(path string) (_ []unpack.Entry, record []byte, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("seal %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	damaged := fmt.Errorf("seal %s: damaged: %w", path, errdefs.ErrDataLoss)
	body := len(b) - 8
	if body < 0 || !bytes.HasPrefix(b, []byte(sealMagic)) || binary.BigEndian.Uint64(b[body:]) != xxh3.Hash(b[:body]) {
		return nil, nil, damaged
	}
	d := sealDecoder{b: b[len(sealMagic):body]}
	record = []byte(d.str())
	n := d.uvarint()
	entries := make([]unpack.Entry, 0, min(n, uint64(body)))
	for ; n > 0 && !d.bad; n-- {
		entries = append(entries, d.entry())
	}
	if d.bad || len(d.b) > 0 {
		return nil, nil, damaged
	}
	return entries, record, nil
}

// sealDecoder takes values off b; bad is set when there are none left.
type sealDecoder struct {
	b   []byte
	bad bool
}

func (d *sealDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *sealDecoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *sealDecoder) str() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *sealDecoder) entry() unpack.Entry {
	e := unpack.Entry{Path: d.str(), Type: unpack.Type(d.str())}
	e.Mode, e.UID, e.GID, e.Rdev = uint32(d.uvarint()), uint32(d.uvarint()), uint32(d.uvarint()), d.uvarint()
	e.Sec, e.Nsec, e.Size, e.Seq = d.varint(), d.varint(), d.varint(), int(d.varint())
	e.Target, e.Inode = d.str(), d.str()
	flags := d.uvarint()
	e.Implied, e.Opaque = flags&1 != 0, flags&2 != 0
	if len(d.b) < len(e.Hash) {
		d.bad, d.b = true, nil
		return e
	}
	copy(e.Hash[:], d.b)
	d.b = d.b[len(e.Hash):]
	if n := d.uvarint(); n > 0 && !d.bad {
		e.Xattrs = make(map[string]string, min(n, 64))
		for ; n > 0 && !d.bad; n-- {
			k := d.str()
			e.Xattrs[k] = d.str()
		}
	}
	return e
}

// compareSeal compares what a seal says with what is on disk, both ways, and reports each difference.
func compareSeal(sealed, found []unpack.Entry, report func(path, what string)) {
	at := make(map[string]*unpack.Entry, len(found))
	for i := range found {
		at[found[i].Path] = &found[i]
	}
	for i := range sealed {
		want := sealed[i]
		if want.Type == unpack.Link {
			continue // nothing on disk
		}
		have := at[want.Path]
		delete(at, want.Path)
		if have == nil {
			report(want.Path, "missing")
			continue
		}
		if what := difference(&want, have); what != "" {
			report(want.Path, what)
		}
	}
	for p := range at {
		report(p, "not in the seal")
	}
}

// difference names the first thing in which two entries differ, "" when none.
func difference(a, b *unpack.Entry) string {
	switch {
	case a.Type != b.Type:
		return "type"
	case a.Type == unpack.Whiteout:
		return "" // only its being there counts
	case a.Mode != b.Mode && a.Type != unpack.Symlink:
		return "mode"
	case a.UID != b.UID || a.GID != b.GID:
		return "owner"
	case a.Sec != b.Sec || a.Nsec != b.Nsec:
		return "time"
	case a.Size != b.Size && a.Type == unpack.File:
		return "size"
	case a.Hash != b.Hash:
		return "content"
	case a.Target != b.Target || a.Rdev != b.Rdev:
		return "target"
	case a.Inode != b.Inode:
		return "links"
	case a.Opaque != b.Opaque:
		return "opaque"
	case !maps.Equal(a.Xattrs, b.Xattrs):
		return "xattrs"
	}
	return ""
}
