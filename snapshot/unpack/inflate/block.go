package inflate

import "encoding/binary"

// codeOrder is the order in which the lengths of the code for code lengths come (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// block reads a block's header (RFC 1951, 3.2.3).
func (d *decoder) block() error {
	head, err := d.take(3)
	if err != nil {
		return err
	}
	d.final = head&1 != 0
	switch head >> 1 {
	case 0:
		return d.storedHeader()
	case 1:
		d.useFixed()
	case 2:
		if err := d.dynamic(); err != nil {
			return err
		}
	default:
		return d.corrupt(0)
	}
	d.step = stepHuffman
	return nil
}

func (d *decoder) endBlock() {
	d.step = stepBlock
	if d.final {
		d.step = stepTrailer
	}
}

// storedHeader reads the length of a block without compression (RFC 1951, 3.2.4).
func (d *decoder) storedHeader() error {
	d.align()
	var head [4]byte
	if _, err := d.readFull(head[:]); err != nil {
		return d.cut()
	}
	d.stored = int(binary.LittleEndian.Uint16(head[:]))
	if binary.LittleEndian.Uint16(head[2:]) != ^uint16(d.stored) {
		return d.corrupt(0)
	}
	d.step = stepStored
	return nil
}

// copyStored copies a block without compression until the block ends or out is full.
func (d *decoder) copyStored() error {
	for d.stored > 0 {
		if d.pos > d.outLimit {
			return nil
		}
		if d.next == d.end && !d.fill() {
			return d.cut()
		}
		n := min(d.stored, d.end-d.next, d.outLimit+1-d.pos)
		copy(d.out[d.pos:d.pos+n], d.in[d.next:])
		d.pos += n
		d.next += n
		d.stored -= n
	}
	d.endBlock()
	return nil
}

// dynamic reads the codes of a block with dynamic codes (RFC 1951, 3.2.7) and builds their tables.
func (d *decoder) dynamic() error {
	head, err := d.take(5 + 5 + 4)
	if err != nil {
		return err
	}
	lits, dists, codes := head&31+257, head>>5&31+1, head>>10+4
	if lits > maxLit || dists > maxDist {
		return d.corrupt(0)
	}
	var order [19]uint8
	for _, i := range codeOrder[:codes] {
		n, err := d.take(3)
		if err != nil {
			return err
		}
		order[i] = uint8(n)
	}
	var table [1 << codeBits]uint32
	least, ok := build(table[:], codeBits, order[:], codeEntries[:], litOdd)
	if !ok {
		return d.corrupt(0)
	}
	var lengths [maxLit + maxDist]uint8
	if err := d.readLengths(lengths[:lits+dists], &table, least); err != nil {
		return err
	}
	d.fixed = false
	if d.litLeast, ok = build(d.lit[:], litBits, lengths[:lits], litEntries[:], litOdd); !ok {
		return d.corrupt(0)
	}
	if d.distLeast, ok = build(d.dist[:], distBits, lengths[lits:lits+dists], distEntries[:], distOdd); !ok {
		return d.corrupt(0)
	}
	d.litLeast = max(d.litLeast, uint(lengths[endOfBlock]))
	return nil
}

// readLengths reads the lengths of two codes as if they were one list.
func (d *decoder) readLengths(lengths []uint8, table *[1 << codeBits]uint32, least uint) error {
	for i := 0; i < len(lengths); {
		bits, have := d.peek(codeBits + 7)
		e := table[bits&(1<<codeBits-1)]
		size := max(uint(e>>shiftSize)&15, least)
		if have < size {
			return d.cut()
		}
		if e&litOdd != 0 {
			return d.corrupt(size)
		}
		d.skip(size)
		bits >>= size
		have -= size

		symbol := uint8(e >> shiftBase)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		var value uint8
		extra, times := uint(3), 3
		switch symbol {
		case 16:
			if i == 0 {
				return d.corrupt(0)
			}
			value, extra = lengths[i-1], 2
		case 18:
			extra, times = 7, 11
		}
		if have < extra {
			return d.cut()
		}
		d.skip(extra)
		times += int(bits & (1<<extra - 1))
		if times > len(lengths)-i {
			return d.corrupt(0)
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	return nil
}

// huffman decodes a block with codes until the block ends or out is full.
func (d *decoder) huffman() error {
	for d.pos <= d.outLimit {
		for d.end-d.next < fastIn && d.fill() {
		}
		ended := false
		if d.end-d.next >= fastIn {
			var odd bool
			if ended, odd = d.fast(); !ended && !odd {
				continue
			}
		}
		if !ended {
			var err error
			if ended, err = d.symbol(); err != nil {
				return err
			}
		}
		if ended {
			d.endBlock()
			return nil
		}
	}
	return nil
}

// symbol decodes one literal, match or end of the block, with all checks. It is used at the end of the input, and
// where the fast loop stops. It asks for as many bits at a time as compress/flate does, so that it fails at the same
// position of the input.
func (d *decoder) symbol() (ended bool, err error) {
	bits, have := d.peek(symbolBits)
	e := d.lit[bits&litMask]
	if e&litOdd != 0 && e&isSub != 0 {
		e = d.lit[subEntry(uint64(e), bits>>litBits)&(litSize-1)]
	}
	size := uint(e>>shiftSize) & 15
	seen := max(size, d.litLeast)
	switch {
	case have < seen:
		return false, d.cut()
	case e&isLiteral != 0:
		d.out[d.pos] = byte(e >> shiftBase)
		d.pos++
		d.skip(size)
		return false, nil
	case e&litOdd != 0 && e&isEnd != 0:
		d.skip(size)
		return true, nil
	case e&litOdd != 0:
		return false, d.corrupt(seen)
	}
	total := uint(e & totalMask)
	if have < total {
		return false, d.cut()
	}
	length := litBase(e) + uint(bits>>size)&litExtra(e)
	bits >>= total

	f := d.dist[bits&distMask]
	if f&distOdd != 0 && f&isSub != 0 {
		f = d.dist[subEntry(f, bits>>distBits)&(distSize-1)]
	}
	size = uint(f>>shiftSize) & 15
	if have < total+max(size, d.distLeast) {
		return false, d.cut()
	}
	seen = max(seen, total+max(size, d.distLeast))
	if f&distOdd != 0 {
		return false, d.corrupt(seen)
	}
	distance := distBase(f) + uint(bits>>size)&distExtra(f)
	total += uint(f & totalMask)
	if have < total {
		return false, d.cut()
	}
	if distance > uint(d.pos-d.floor) {
		return false, d.corrupt(max(seen, total))
	}
	for range length {
		d.out[d.pos] = d.out[d.pos-int(distance)]
		d.pos++
	}
	d.skip(total)
	return false, nil
}
