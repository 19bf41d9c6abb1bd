package inflate

import "math/bits"

const (
	maxCode    = 15  // bits of a code
	maxLit     = 286 // literals, the end of the block, and lengths
	maxDist    = 30
	endOfBlock = 256

	litBits  = 11
	distBits = 8
	codeBits = 7 // of the code for code lengths, which has no longer ones
	litRun   = 5 // literals in a row for one refill
	litMask  = 1<<litBits - 1
	distMask = 1<<distBits - 1

	// Subtables lie behind the table of the first bits. One of 2^n entries is for n+1 codes or more. So those for
	// literals, of 2^4 entries at most, need no more than 286*16/5 = 915, and those for distances no more than
	// 30*128/8 = 480.
	litSize  = 1 << 12
	distSize = 1 << 10
)

// An entry says what the bits that lead to it stand for. Its low 16 bits are the same in all tables: the sum of the
// code's bits and of those that extend it (6 bits, so that a shift needs no mask), two flags, and the bits of the
// code (6 bits, the same). From bit 16 it has the literal or the base of a length or distance, and above that a mask
// for the extra bits.
const (
	totalMask = 1<<6 - 1
	// odd: the start of a subtable is in place of the base, and the bits it takes in place of the code's
	isSub     = 1 << 6
	isEnd     = 1 << 7 // odd: end of the block
	shiftSize = 8
	shiftBase = 16

	litOdd    = 1 << 30 // neither literal nor length: subtable, end, or no code
	isLiteral = 1 << 31
	distOdd   = 1 << 63 // no distance: subtable or no code
)

func litBase(e uint32) uint   { return uint(e>>shiftBase) & 0x1ff }
func litExtra(e uint32) uint  { return uint(e>>25) & 0x1f }
func distBase(e uint64) uint  { return uint(e>>shiftBase) & 0xffff }
func distExtra(e uint64) uint { return uint(e>>32) & 0x3fff }

// subEntry is where a subtable has its entry for these bits, the ones that led to it shifted out.
func subEntry(e uint64, rest uint64) uint {
	return uint(e>>shiftBase)&0xfff + uint(rest)&(1<<(e>>shiftSize&15)-1)
}

// The entries of all symbols, without their codes.
var (
	codeEntries [19]uint32
	litEntries  [288]uint32
	distEntries [32]uint64

	fixedLit  [1 << litBits]uint32
	fixedDist [1 << distBits]uint64
)

// The codes of RFC 1951, 3.2.5 and 3.2.6.
func init() {
	for i := range codeEntries {
		codeEntries[i] = uint32(i) << shiftBase
	}
	for i := range endOfBlock {
		litEntries[i] = isLiteral | uint32(i)<<shiftBase
	}
	litEntries[endOfBlock] = litOdd | isEnd
	base := 3
	for i := range 28 {
		extra := max(0, i/4-1)
		litEntries[endOfBlock+1+i] = uint32(extra + base<<shiftBase + (1<<extra-1)<<25)
		base += 1 << extra
	}
	litEntries[285] = maxMatch << shiftBase
	litEntries[286], litEntries[287] = litOdd, litOdd
	base = 1
	for i := range maxDist {
		extra := max(0, i/2-1)
		distEntries[i] = uint64(extra+base<<shiftBase) + uint64(1<<extra-1)<<32
		base += 1 << extra
	}
	distEntries[30], distEntries[31] = distOdd, distOdd

	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(fixedLit[:], litBits, lengths[:], litEntries[:], litOdd)
	for i := range distEntries {
		lengths[i] = 5
	}
	build(fixedDist[:], distBits, lengths[:len(distEntries)], distEntries[:], distOdd)
}

func (d *decoder) useFixed() {
	if !d.fixed {
		copy(d.lit[:], fixedLit[:])
		copy(d.dist[:], fixedDist[:])
		d.fixed = true
	}
	d.litLeast, d.distLeast = 7, 5
}

// build makes the table for a canonical code (RFC 1951, 3.2.2) with these lengths, of which 0 is no code, for symbols
// with these entries. It returns the shortest length. Like compress/flate it takes codes that are complete, that have
// one code of one bit, or none; what no code leads to is odd.
func build[E uint32 | uint64](table []E, root uint, lengths []uint8, entries []E, odd E) (least uint, ok bool) {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n&maxCode]++
	}
	count[0] = 0
	longest, space := uint(0), 0
	for n := uint(maxCode); n > 0; n-- {
		if count[n] > 0 {
			longest, least = max(longest, n), n
		}
		space += count[n] << (maxCode - n)
	}
	if longest == 0 {
		for i := range 1 << root {
			table[i] = odd
		}
		return 0, true
	}
	if space != 1<<maxCode && !(longest == 1 && count[1] == 1) {
		return least, false
	}
	var sorted [288]uint16
	var place [maxCode + 2]int
	for n := 1; n <= maxCode; n++ {
		place[n+1] = place[n] + count[n]
	}
	for symbol, n := range lengths {
		if n != 0 {
			sorted[place[n]] = uint16(symbol)
			place[n]++
		}
	}

	// The bits of codes come in reverse. A table for n bits, twice, is one for n+1 bits that lacks the codes of n+1
	// bits.
	todo, code := sorted[:], uint(0)
	table[1] = odd
	for n := least; n <= root; n++ {
		for range count[n] {
			table[code] = entries[todo[0]] + E(n)<<shiftSize + E(n)
			todo, code = todo[1:], follow(code, n)
		}
		if n < root {
			copy(table[1<<n:2<<n], table[:1<<n])
		}
	}
	if longest > root {
		buildSubtables(table, root, &count, todo, code, max(root+1, least), entries, odd)
	}
	return least, true
}

// buildSubtables goes on with the codes that are longer than root, of n bits and more.
func buildSubtables[E uint32 | uint64](
	table []E,
	root uint,
	count *[maxCode + 1]int,
	todo []uint16,
	code, n uint,
	entries []E,
	odd E,
) {
	var start, size uint
	free, current := uint(1)<<root, ^uint(0)
	for ; n <= maxCode; n++ {
		for ; count[n] > 0; count[n]-- {
			if prefix := code & (1<<root - 1); prefix != current {
				current, start, size = prefix, free, n-root
				for room := 1<<size - count[n]; room > 0 && root+size < maxCode; {
					size++
					room = 2*room - count[root+size]
				}
				free += 1 << size
				table[prefix] = odd | isSub | E(start)<<shiftBase | E(size)<<shiftSize
			}
			e := entries[todo[0]] + E(n)<<shiftSize + E(n)
			for i := code >> root; i < 1<<size; i += 1 << (n - root) {
				table[start+i] = e
			}
			todo, code = todo[1:], follow(code, n)
		}
	}
}

// follow returns the code of n bits that follows, both in reverse; what it returns after the last one is of no use.
func follow(code, n uint) uint {
	zeros := ^code & (1<<n - 1)
	if zeros == 0 {
		return 0
	}
	top := uint(1) << (bits.Len(zeros) - 1)
	return code&(top-1) | top
}
