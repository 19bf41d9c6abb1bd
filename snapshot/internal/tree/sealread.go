package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// Seal is a seal whose checksum was verified. It has no open file, so many of them can be in use.
type Seal struct {
	path   string
	Record []byte
	count  uint64 // of the entries
	start  int64  // offset of the first entry
	end    int64  // offset of the checksum
	// unsorted allows entries in any order.
	unsorted bool
}

// sealWindow is how many bytes of a seal are read at once.
const sealWindow = 32 << 10

// OpenSeal reads a seal and verifies its checksum. It returns errdefs.ErrNotFound if the seal is missing, and
// errdefs.ErrDataLoss if it is damaged or not a regular file.
func OpenSeal(ctx context.Context, path string) (*Seal, error) {
	f, err := regular.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("seal %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, errclass.Ensure(fmt.Errorf("seal %s: %w", path, err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	damaged := fmt.Errorf("seal %s: damaged: %w", path, errdefs.ErrDataLoss)
	s := &Seal{path: path, end: info.Size() - 8}
	if s.end < 0 || info.Size() > maxSeal {
		return nil, damaged
	}
	head := make([]byte, min(s.end, sealWindow)) // a record takes a few hundred bytes
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(head), sealMagic) {
		return nil, damaged
	}
	if err := s.verify(ctx, f); err != nil {
		return nil, err
	}
	d := sealDecoder{b: head[len(sealMagic):]}
	s.Record = []byte(d.str())
	s.count = d.uvarint()
	if d.bad {
		return nil, damaged
	}
	s.start = int64(len(head) - len(d.b))
	return s, nil
}

// verify compares the checksum at the end with that of the bytes before it.
func (s *Seal) verify(ctx context.Context, f *os.File) error {
	h := xxh3.New()
	if err := interrupt.Copy(ctx, h, io.NewSectionReader(f, 0, s.end)); err != nil {
		return err
	}
	var sum [8]byte
	if _, err := f.ReadAt(sum[:], s.end); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(sum[:]) != h.Sum64() {
		return fmt.Errorf("seal %s: damaged: %w", s.path, errdefs.ErrDataLoss)
	}
	return nil
}

// Cursor returns a reader that begins with the first entry.
func (s *Seal) Cursor() *Cursor { return &Cursor{s: s, at: s.start, left: s.count} }

// Each is the List of the entries.
func (s *Seal) Each(visit func(*entry.Entry) error) error {
	c := s.Cursor()
	for {
		e, err := c.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = visit(e)
		}
		if err != nil {
			return err
		}
	}
}

// Cursor reads the entries of a seal one after the other.
type Cursor struct {
	s     *Seal
	at    int64  // offset of the next window
	left  uint64 // entries that were not returned yet
	buf   []byte // the bytes that were read but not decoded
	space []byte // the array of buf
	prev  string
	e     entry.Entry
	// Most entries with extended attributes have the same ones as the entry before. A map takes as much
	// memory as an entry.
	xattrs map[string]string
	raw    []byte // the encoded form of xattrs
}

// Next returns the next entry, io.EOF after the last. The next call overwrites the entry, but not its strings.
func (c *Cursor) Next() (*entry.Entry, error) {
	damaged := func() error { return fmt.Errorf("seal %s: damaged: %w", c.s.path, errdefs.ErrDataLoss) }
	if c.left == 0 {
		if len(c.buf) > 0 || c.at != c.s.end {
			return nil, damaged()
		}
		return nil, io.EOF
	}
	for {
		d := sealDecoder{b: c.buf}
		raw := d.entryTo(&c.e)
		if !d.bad {
			c.buf = d.b
			c.setXattrs(raw)
			break
		}
		if c.at == c.s.end {
			return nil, damaged()
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	if !c.s.unsorted && c.prev != "" && entry.ComparePaths(c.prev, c.e.Path) >= 0 {
		return nil, damaged()
	}
	c.prev = c.e.Path
	c.left--
	return &c.e, nil
}

func (c *Cursor) setXattrs(raw []byte) {
	if raw == nil {
		return
	}
	if !bytes.Equal(raw, c.raw) {
		c.raw = append(c.raw[:0], raw...)
		d := sealDecoder{b: raw}
		n := d.uvarint()
		c.xattrs = make(map[string]string, min(n, 64))
		for ; n > 0; n-- {
			k := d.str()
			c.xattrs[k] = d.str()
		}
	}
	c.e.Xattrs = c.xattrs
}

// fill reads another window. For an entry that does not fit it doubles the window, up to the size of the file.
func (c *Cursor) fill() error {
	need := max(sealWindow, 2*len(c.buf))
	if len(c.space) < need {
		c.space = make([]byte, need)
	}
	kept := copy(c.space, c.buf)
	n := min(int64(len(c.space)-kept), c.s.end-c.at)
	f, err := regular.Open(c.s.path)
	if err != nil {
		return fmt.Errorf("seal %s: %w", c.s.path, err)
	}
	defer f.Close()
	if _, err := f.ReadAt(c.space[kept:kept+int(n)], c.at); err != nil {
		return fmt.Errorf("seal %s: %w", c.s.path, err)
	}
	c.at += n
	c.buf = c.space[:kept+int(n)]
	return nil
}

// sealDecoder decodes values from b. It sets bad if b ends too early.
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

// entryTo decodes an entry without its extended attributes, and returns their encoded form, nil if there are none.
func (d *sealDecoder) entryTo(e *entry.Entry) (xattrs []byte) {
	*e = entry.Entry{Path: d.str(), Type: d.kind()}
	e.Mode, e.UID, e.GID, e.Rdev = uint32(d.uvarint()), uint32(d.uvarint()), uint32(d.uvarint()), d.uvarint()
	e.Sec, e.Nsec, e.Size, e.Seq = d.varint(), d.varint(), d.varint(), int(d.varint())
	e.Target, e.Inode = d.str(), d.str()
	flags := d.uvarint()
	e.Implied, e.Opaque = flags&1 != 0, flags&2 != 0
	if len(d.b) < len(e.Hash) {
		d.bad, d.b = true, nil
		return nil
	}
	copy(e.Hash[:], d.b)
	d.b = d.b[len(e.Hash):]
	all := d.b
	n := d.uvarint()
	for i := n; i > 0 && !d.bad; i-- {
		d.skip()
		d.skip()
	}
	if n == 0 || d.bad {
		return nil
	}
	return all[:len(all)-len(d.b)]
}

// skip passes over a string.
func (d *sealDecoder) skip() {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return
	}
	d.b = d.b[n:]
}

// kind decodes a type.
func (d *sealDecoder) kind() entry.Type {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return 0
	}
	t, ok := entry.TypeNamed(d.b[:n])
	if d.b = d.b[n:]; !ok {
		d.bad, d.b = true, nil
	}
	return t
}
