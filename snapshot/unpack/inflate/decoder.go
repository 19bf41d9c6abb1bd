package inflate

import (
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
)

const (
	window   = 1 << 15 // how far back a match may refer (RFC 1951, 2)
	maxMatch = 258

	inSize  = 1 << 16
	outSize = 1 << 18
	inMask  = inSize - 1
	outMask = outSize - 1

	word = 8  // bytes that are loaded at once
	wide = 16 // bytes that a match copies at once, so it may write up to 15 too many

	// fastIn is how much input the fast loop has to find. It loads twice before its first round, which moves on by 14
	// bytes at most, and twice in each round, where the second is at most 7 bytes behind the first.
	fastIn   = 2*7 + roundIn
	roundIn  = 7 + word
	roundOut = litRun + maxMatch // more than a round writes
	outFull  = outSize - roundOut

	// symbolBits has a length, a distance, and the extra bits of both.
	symbolBits = maxCode + 5 + maxCode + 13
)

// What the masks and limits stand on: none of these may be negative, which would not compile.
const (
	_ uint = -(inSize & inMask)
	_ uint = -(outSize & outMask)
	_ uint = outFull - 2*window           // a slide makes more room than it keeps
	_ uint = outSize - roundOut - outFull // a round begins at outFull at most, and no match in it reaches the mask
	_ uint = wide - word                  // the slack behind out is for the widest copy
	_ uint = 56 - litRun*litBits          // one refill has the bits of a run of literals,
	_ uint = 56 - symbolBits              // or of a match,
	_ uint = 8*word - 7 - symbolBits      // and so has a load that begins within a byte
	_ uint = inSize - 4*fastIn            // room for what is looked at
	_ uint = 1<<litBits - 1<<7            // doubling a table never passes its root
	_ uint = litSize - 1<<litBits - 915   // see the comment there
	_ uint = distSize - 1<<distBits - 480 // the same
	_ uint = -(litSize & (litSize - 1))   //
	_ uint = -(distSize & (distSize - 1)) //
	_ uint = 1<<(30-shiftBase) - litSize  // the start of a subtable fits in an entry
	_ uint = 1<<(32-shiftBase) - distSize //
)

// decoder is what a Reader needs while it is open. All of it is one allocation, so that one register reaches
// everything.
type decoder struct {
	in   [inSize + word]byte
	out  [outSize + wide]byte
	lit  [litSize]uint32
	dist [distSize]uint64

	// fixed: lit and dist hold the codes of RFC 1951, 3.2.6.
	fixed bool
	state
}

// state is the part of a decoder that Reset clears.
type state struct {
	opts Options
	src  io.Reader
	gone error // the error or io.EOF with which src ended
	err  error // returned after out is delivered
	step step

	// in[next:end] is not decoded yet, the first used bits of in[next] excepted. There is no other place for bits
	// between two steps, so input that may be needed again cannot be thrown away.
	next, end int
	used      uint
	inLimit   int   // of end
	base      int64 // offset of in[0] in the source
	start     int64 // offset of the member's first block

	// out[delivered:pos] is for the caller, out[summed:pos] is not in crc and size, and out[floor:pos] is what a
	// match may refer to.
	pos, delivered, summed, floor int
	outLimit                      int // out is full when pos is behind it

	members   int
	crc, size uint32
	final     bool // the block is the member's last
	stored    int  // bytes left of a stored block
	scratch   [10]byte
	// What compress/flate wants to see before it looks for a code.
	litLeast, distLeast uint
}

// step is the next part of the stream.
type step int

const (
	stepMember step = iota
	stepBlock
	stepStored
	stepHuffman
	stepTrailer
)

func (d *decoder) reset(src io.Reader, opts Options) {
	d.state = state{opts: opts, src: src, inLimit: inSize, outLimit: outFull}
}

// more decodes until there is something to deliver or an error.
func (d *decoder) more() error {
	for d.delivered == d.pos {
		if d.err != nil {
			return d.err
		}
		d.decode()
	}
	return nil
}

// decode decodes until out is full or the stream ends. All bytes in out have been delivered before.
func (d *decoder) decode() {
	if d.pos > d.outLimit {
		keep := min(window, d.pos-d.floor)
		copy(d.out[:], d.out[d.pos-keep:d.pos])
		d.pos, d.delivered, d.summed, d.floor = keep, keep, keep, 0
	}
	for d.err == nil && d.pos <= d.outLimit {
		switch d.step {
		case stepMember:
			d.err = d.member()
		case stepBlock:
			d.err = d.block()
		case stepStored:
			d.err = d.copyStored()
		case stepHuffman:
			d.err = d.huffman()
		case stepTrailer:
			d.err = d.trailer()
		}
	}
	d.sum()
}

// sum adds the bytes that were decoded since its last call to the checksum.
func (d *decoder) sum() {
	fresh := d.out[d.summed:d.pos]
	d.crc = crc32.Update(d.crc, crc32.IEEETable, fresh)
	d.size += uint32(len(fresh))
	d.summed = d.pos
}

// fill reads once from the source, behind the bytes that are not decoded yet. It returns false at the end of the
// source.
func (d *decoder) fill() bool {
	if d.gone != nil {
		return false
	}
	copy(d.in[:], d.in[d.next:d.end])
	d.base += int64(d.next)
	d.next, d.end = 0, d.end-d.next
	for range 100 {
		room := d.in[d.end:d.inLimit]
		n, err := d.src.Read(room)
		d.end += len(room[:n])
		d.gone = err
		if n > 0 || err != nil {
			return n > 0
		}
	}
	d.gone = io.ErrNoProgress
	return false
}

// peek returns the next bits and their number: at least want bits, unless the source ends. Bits above that number
// are zero.
func (d *decoder) peek(want uint) (bits uint64, n uint) {
	for {
		ahead := uint(d.end - d.next)
		bits = load(&d.in, uint(d.next))
		if ahead < word {
			bits &= 1<<(8*ahead) - 1
		} else {
			ahead = word
		}
		bits, n = bits>>(d.used&7), 8*ahead-d.used
		if n >= want || !d.fill() {
			return bits, n
		}
	}
}

// skip consumes bits that peek returned.
func (d *decoder) skip(n uint) {
	n += d.used
	d.next += int(n / 8)
	d.used = n % 8
}

// take returns the next n bits.
func (d *decoder) take(n uint) (int, error) {
	bits, have := d.peek(n)
	if have < n {
		return 0, d.cut()
	}
	d.skip(n)
	return int(bits & (1<<n - 1)), nil
}

// align skips to the next whole byte.
func (d *decoder) align() {
	d.skip(-d.used & 7)
}

// readFull is like io.ReadFull, for whole bytes.
func (d *decoder) readFull(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if d.next == d.end && !d.fill() {
			if n > 0 {
				return n, d.cut()
			}
			return 0, d.gone
		}
		k := copy(p[n:], d.in[d.next:d.end])
		d.next += k
		n += k
	}
	return n, nil
}

// cut returns the error for a source that ended too early.
func (d *decoder) cut() error {
	if d.gone == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return d.gone
}

// corrupt returns the error that compress/flate returns after it has looked at so many more bits. It reads their
// bytes one by one.
func (d *decoder) corrupt(bits uint) error {
	return flate.CorruptInputError(d.base + int64(d.next) - d.start + int64((d.used+bits+7)/8))
}

// load returns the word at in[i]. The mask keeps i within the array. If it changes i, the word is never used.
func load(in *[inSize + word]byte, i uint) uint64 {
	i &= inMask
	return binary.LittleEndian.Uint64(in[i : i+word])
}
