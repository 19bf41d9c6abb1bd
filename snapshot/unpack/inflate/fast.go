package inflate

import "encoding/binary"

// fast decodes while there is plenty of input and room. At least fastIn bytes of input must be available when it
// begins. It stops when either runs out, after the end of a block (ended), and before an invalid code or a distance
// that goes back too far (odd), which it leaves to the method symbol.
//
// The variable left counts the bits of the input in the low end of the variable bits. The bits above those are either
// right too or zero, and will be added again. Only the low six bits of left count: the others are remains of
// subtracting whole table entries.
//
//nolint:funlen // one loop, which keeps its state in registers
func (d *decoder) fast() (ended, odd bool) {
	var (
		out    = &d.out
		next   = uint(d.next)
		pos    = uint(d.pos)
		floor  = uint(d.floor)
		inEnd  = uint(d.end - roundIn)
		outEnd = uint(d.outLimit)
		undo   uint64
	)
	bits := load(&d.in, next) >> (d.used & 7)
	left := uint64(56 - d.used)
	next += 7
	bits |= load(&d.in, next) << (left & 63)
	next += uint(^left&63) >> 3
	left |= 56
	e := d.lit[bits&litMask]

	for next <= inEnd && pos <= outEnd {
		if int32(e) < 0 {
			out[pos&outMask] = byte(e >> shiftBase)
			pos++
			bits >>= e & 63
			left -= uint64(e)
			e = d.lit[bits&litMask]
			if int32(e) < 0 {
				out[pos&outMask] = byte(e >> shiftBase)
				pos++
				bits >>= e & 63
				left -= uint64(e)
				e = d.lit[bits&litMask]
				if int32(e) < 0 {
					out[pos&outMask] = byte(e >> shiftBase)
					pos++
					bits >>= e & 63
					left -= uint64(e)
					e = d.lit[bits&litMask]
					if int32(e) < 0 {
						out[pos&outMask] = byte(e >> shiftBase)
						pos++
						bits >>= e & 63
						left -= uint64(e)
						e = d.lit[bits&litMask]
						if int32(e) < 0 {
							out[pos&outMask] = byte(e >> shiftBase)
							pos++
							bits >>= e & 63
							left -= uint64(e)
							bits |= load(&d.in, next) << (left & 63)
							next += uint(^left&63) >> 3
							left |= 56
							e = d.lit[bits&litMask]
							continue
						}
					}
				}
			}
			bits |= load(&d.in, next) << (left & 63)
			next += uint(^left&63) >> 3
			left |= 56
		}
		if e&litOdd != 0 {
			if e&isSub != 0 {
				e = d.lit[subEntry(uint64(e), bits>>litBits)&(litSize-1)]
			}
			if int32(e) < 0 {
				out[pos&outMask] = byte(e >> shiftBase)
				pos++
				bits >>= e & 63
				left -= uint64(e)
				bits |= load(&d.in, next) << (left & 63)
				next += uint(^left&63) >> 3
				left |= 56
				e = d.lit[bits&litMask]
				continue
			}
			if e&litOdd != 0 {
				if ended = e&isEnd != 0; ended {
					left -= uint64(e)
				}
				odd = !ended
				break
			}
		}
		length := litBase(e) + uint(bits>>(e>>shiftSize&63))&litExtra(e)
		bits >>= e & 63
		left -= uint64(e)

		f := d.dist[bits&distMask]
		if int64(f) < 0 {
			if f&isSub != 0 {
				f = d.dist[subEntry(f, bits>>distBits)&(distSize-1)]
			}
			if int64(f) < 0 {
				odd, undo = true, uint64(e&totalMask)
				break
			}
		}
		distance := distBase(f) + uint(bits>>(f>>shiftSize&63))&distExtra(f)
		bits >>= f & 63
		left -= f
		if distance > pos-floor {
			odd, undo = true, uint64(e&totalMask)+f&totalMask
			break
		}
		bits |= load(&d.in, next) << (left & 63)
		next += uint(^left&63) >> 3
		left |= 56
		e = d.lit[bits&litMask]

		from, end := pos-distance, pos+length
		if distance >= wide {
			copyWide(out, pos, from)
			for pos += wide; pos < end; pos += wide {
				from += wide
				copyWide(out, pos, from)
			}
		} else {
			copyNear(out, pos, distance, end)
		}
		pos = end
	}
	at := uint64(next)*8 - left&63 - undo
	d.next, d.used = int(at/8), uint(at%8)
	d.pos = int(pos)
	return ended, odd
}

// copyWide copies 16 bytes. from is at least 16 bytes before to.
func copyWide(out *[outSize + wide]byte, to, from uint) {
	to &= outMask
	from &= outMask
	*(*[wide]byte)(out[to : to+wide]) = *(*[wide]byte)(out[from : from+wide])
}

// Both tables are indexed by a distance below the size of a word, in bytes. Multiplying that many bytes by repeat
// fills a word with repetitions of them. period is the number of bytes of such a word that are whole repetitions.
var (
	repeat = [word]uint64{
		0, 0x0101010101010101, 0x0001000100010001, 0x0001000001000001,
		0x0000000100000001, 0x0000010000000001, 0x0001000000000001, 0x0100000000000001,
	}
	period = [word]uint{0, 8, 8, 6, 8, 5, 6, 7}
)

// copyNear copies a match whose distance is less than 16 bytes.
func copyNear(out *[outSize + wide]byte, pos, distance, end uint) {
	if distance >= word {
		for ; pos < end; pos += word {
			to, from := pos&outMask, (pos-distance)&outMask
			binary.LittleEndian.PutUint64(out[to:to+word], binary.LittleEndian.Uint64(out[from:from+word]))
		}
		return
	}
	distance &= word - 1
	from := (pos - distance) & outMask
	pattern := binary.LittleEndian.Uint64(out[from : from+word])
	pattern = pattern & (1<<(8*distance) - 1) * repeat[distance]
	for ; pos < end; pos += period[distance] {
		to := pos & outMask
		binary.LittleEndian.PutUint64(out[to:to+word], pattern)
	}
}
