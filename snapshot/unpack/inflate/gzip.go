package inflate

import (
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
)

// Flags of a member's header (RFC 1952, 2.3.1).
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagsReserved = 7 << 5
)

const (
	magic     = 0x8b1f
	deflate   = 8
	maxString = 512 // compress/gzip takes no name and no comment that is longer, its NUL included
)

// member reads the header of a member, or ends the stream if there is none.
func (d *decoder) member() error {
	if d.members > 0 && d.opts.IgnoreTrailing {
		if two, n := d.peek(16); n < 16 || two&0xffff != magic {
			return d.discard()
		}
	}
	d.members++
	if err := d.header(); err != nil {
		return err
	}
	d.start = d.base + int64(d.next)
	d.crc, d.size, d.floor = 0, 0, d.pos
	d.step = stepBlock
	return nil
}

// discard reads the source to its end.
func (d *decoder) discard() error {
	d.next = d.end
	for d.fill() {
		d.next = d.end
	}
	return d.gone
}

func (d *decoder) header() error {
	head := d.scratch[:10]
	if _, err := d.readFull(head); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(head) != magic || head[2] != deflate {
		return gzip.ErrHeader
	}
	flags, sum := head[3], crc32.ChecksumIEEE(head)
	if flags&flagExtra != 0 {
		var err error
		if sum, err = d.extra(sum); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag != 0 {
			var err error
			if sum, err = d.text(sum); err != nil {
				return err
			}
		}
	}
	if flags&flagHeaderCRC != 0 {
		if _, err := d.readFull(head[:2]); err != nil {
			return d.cut()
		}
		if binary.LittleEndian.Uint16(head) != uint16(sum) {
			return gzip.ErrHeader
		}
	}
	if flags&flagsReserved != 0 && d.opts.RefuseReserved {
		return gzip.ErrHeader
	}
	return nil
}

// extra skips the extra field and adds it to sum.
func (d *decoder) extra(sum uint32) (uint32, error) {
	size := d.scratch[:2]
	if _, err := d.readFull(size); err != nil {
		return 0, d.cut()
	}
	sum = crc32.Update(sum, crc32.IEEETable, size)
	for left := int(binary.LittleEndian.Uint16(size)); left > 0; {
		if d.next == d.end && !d.fill() {
			return 0, d.cut()
		}
		part := d.in[d.next:min(d.end, d.next+left)]
		sum = crc32.Update(sum, crc32.IEEETable, part)
		d.next += len(part)
		left -= len(part)
	}
	return sum, nil
}

// text skips a string that ends in NUL and adds it to sum.
func (d *decoder) text(sum uint32) (uint32, error) {
	b := d.scratch[:1]
	for range maxString {
		if _, err := d.readFull(b); err != nil {
			return 0, d.cut()
		}
		sum = crc32.Update(sum, crc32.IEEETable, b)
		if b[0] == 0 {
			return sum, nil
		}
	}
	return 0, gzip.ErrHeader
}

// trailer compares checksum and size (RFC 1952, 2.3.1).
func (d *decoder) trailer() error {
	d.align()
	d.sum()
	tail := d.scratch[:8]
	if _, err := d.readFull(tail); err != nil {
		return d.cut()
	}
	if binary.LittleEndian.Uint32(tail) != d.crc || binary.LittleEndian.Uint32(tail[4:]) != d.size {
		return gzip.ErrChecksum
	}
	d.step = stepMember
	return nil
}
