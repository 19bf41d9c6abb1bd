package inflate_test

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// bitWriter writes bits in the order of RFC 1951, 3.1.1.
type bitWriter struct {
	b   []byte
	acc uint64
	n   uint
}

func (w *bitWriter) bits(v uint64, n uint) *bitWriter {
	w.acc |= v & (1<<n - 1) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
	return w
}

func (w *bitWriter) align() *bitWriter { return w.bits(0, -w.n&7) }

func (w *bitWriter) bytes(p ...byte) *bitWriter {
	w.align().b = append(w.b, p...)
	return w
}

// huffman is a Huffman code: the length and the bits of each symbol, with the first bit lowest.
type huffman struct {
	lengths []uint8
	codes   []uint16
}

func (h *huffman) assign(lengths []uint8) {
	h.lengths = lengths
	h.codes = slices.Grow(h.codes[:0], len(lengths))[:len(lengths)]
	var next [17]uint
	for _, n := range lengths {
		if n > 0 {
			next[n+1]++
		}
	}
	for n := 1; n < len(next); n++ {
		next[n] = (next[n] + next[n-1]) << 1
	}
	for s, n := range lengths {
		if n > 0 {
			h.codes[s] = bits.Reverse16(uint16(next[n])) >> (16 - n)
			next[n]++
		}
	}
}

func (w *bitWriter) symbol(h *huffman, s int) {
	w.bits(uint64(h.codes[s]), uint(h.lengths[s]))
}

// generator makes gzip files, most of them valid, with codes that no compressor would choose.
type generator struct {
	rng  *rand.Rand
	w    bitWriter
	out  []byte // the decompressed content of the member, if it is valid
	goal int    // the approximate length of out

	lit, dist, code       huffman
	litLen, distLen, cLen [320]uint8
	fixedLit, fixedDist   huffman
	depths                []uint8
	order                 [320]uint16
	tokens                []token
}

type token struct{ symbol, extra, width uint8 }

func newGenerator(seed uint64) *generator {
	g := &generator{rng: rand.New(rand.NewPCG(seed, 5))}
	lit, dist := make([]uint8, 288), make([]uint8, 32)
	for i := range lit {
		switch {
		case i < 144 || i >= 280:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		default:
			lit[i] = 7
		}
	}
	for i := range dist {
		dist[i] = 5
	}
	g.fixedLit.assign(lit)
	g.fixedDist.assign(dist)
	return g
}

// one returns true with probability 1/n.
func (g *generator) one(n int) bool { return g.rng.IntN(n) == 0 }

// file returns a file of up to three members, usually one, which decompress to about size bytes each. The slice is
// valid until the next call.
func (g *generator) file(size int) []byte {
	g.w = bitWriter{b: g.w.b[:0]}
	g.goal = size
	members := 1
	if g.one(8) {
		members = g.rng.IntN(4)
	}
	for range members {
		g.out = g.out[:0]
		g.header()
		for blocks := 1 + g.rng.IntN(3); blocks > 0; blocks-- {
			g.block(blocks == 1)
		}
		crc, n := crc32.ChecksumIEEE(g.out), uint32(len(g.out))
		if g.one(50) {
			crc ^= 1 << g.rng.IntN(32)
		}
		if g.one(50) {
			n ^= 1 << g.rng.IntN(32)
		}
		g.w.align()
		g.w.b = binary.LittleEndian.AppendUint32(g.w.b, crc)
		g.w.b = binary.LittleEndian.AppendUint32(g.w.b, n)
	}
	if g.one(20) {
		for range g.rng.IntN(20) {
			g.w.bytes(byte(g.rng.Uint32()) >> g.rng.IntN(8))
		}
	}
	return g.w.b
}

func (g *generator) header() {
	var flags byte
	if g.one(6) {
		flags = byte(g.rng.Uint32())
	}
	begin := len(g.w.b)
	g.w.bytes(0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255)
	if flags&4 != 0 {
		n := g.rng.IntN(40)
		g.w.bytes(byte(n), 0)
		g.w.bytes(make([]byte, n)...)
	}
	for flag := byte(8); flag <= 16; flag *= 2 {
		if flags&flag != 0 {
			n := g.rng.IntN(20)
			if g.one(20) {
				n = 505 + g.rng.IntN(12)
			}
			for range n {
				g.w.bytes(byte(g.rng.IntN(255)) + 1)
			}
			g.w.bytes(0)
		}
	}
	if flags&2 != 0 {
		sum := crc32.ChecksumIEEE(g.w.b[begin:])
		if g.one(10) {
			sum++
		}
		g.w.bytes(byte(sum), byte(sum>>8))
	}
}

func (g *generator) block(final bool) {
	g.w.bits(uint64(b2i(final)), 1)
	switch kind := g.rng.IntN(40); {
	case kind == 0:
		g.w.bits(3, 2)
	case kind < 6:
		g.w.bits(0, 2).align()
		n := g.rng.IntN(min(g.goal, 1<<16-1) + 1)
		check := ^n
		if g.one(30) {
			check ^= 1 << g.rng.IntN(16)
		}
		g.w.bytes(byte(n), byte(n>>8), byte(check), byte(check>>8))
		for range n {
			b := byte(g.rng.Uint32())
			g.w.b = append(g.w.b, b)
			g.out = append(g.out, b)
		}
	case kind < 20:
		g.w.bits(1, 2)
		g.symbols(&g.fixedLit, &g.fixedDist)
	default:
		g.w.bits(2, 2)
		g.dynamic()
		g.symbols(&g.lit, &g.dist)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// randomLengths sets the code lengths of these symbols to random values that form a complete code, and the others to
// zero. In one call of 60, one length is then replaced with a random one, which usually makes the code invalid.
func (g *generator) randomLengths(lengths []uint8, symbols []uint16, longest uint8) {
	clear(lengths)
	if len(symbols) == 0 {
		return
	}
	g.depths = append(g.depths[:0], 1)
	if len(symbols) > 1 {
		g.depths = append(g.depths, 1)
	}
	skew := g.rng.IntN(3)
	for len(g.depths) < len(symbols) {
		i := len(g.depths) - 1
		if skew == 0 || g.depths[i] == longest {
			i = g.rng.IntN(len(g.depths))
			for g.depths[i] == longest {
				i = (i + 1) % len(g.depths)
			}
		}
		g.depths[i]++
		g.depths = append(g.depths, g.depths[i])
	}
	for i, s := range symbols {
		lengths[s] = g.depths[i]
	}
	if g.one(60) {
		s := symbols[g.rng.IntN(len(symbols))]
		lengths[s] = uint8(g.rng.IntN(int(longest) + 1))
	}
}

// pick returns n different random symbols below limit. The slice is valid until the next call.
func (g *generator) pick(limit, n int) []uint16 {
	for i := range limit {
		g.order[i] = uint16(i)
	}
	for i := range n {
		j := i + g.rng.IntN(limit-i)
		g.order[i], g.order[j] = g.order[j], g.order[i]
	}
	return g.order[:n]
}

// few returns a random number up to limit, which is usually small.
func (g *generator) few(limit int) int {
	return g.rng.IntN(limit>>g.rng.IntN(bits.Len(uint(limit))) + 1)
}

func (g *generator) dynamic() {
	lits, dists := 286, 30
	if g.one(100) {
		lits += g.rng.IntN(3)
	}
	if g.one(100) {
		dists += g.rng.IntN(3)
	}
	symbols := g.pick(min(lits, 286), g.few(285)+1)
	if !slices.Contains(symbols, 256) && !g.one(50) {
		symbols[g.rng.IntN(len(symbols))] = 256
	}
	if len(symbols) > 2 && !g.one(3) { // make sure that there is a length symbol
		s := uint16(257 + g.rng.IntN(29))
		if i := slices.IndexFunc(symbols, func(x uint16) bool { return x < 256 }); i >= 0 &&
			!slices.Contains(symbols, s) {
			symbols[i] = s
		}
	}
	g.randomLengths(g.litLen[:lits], symbols, 15)
	g.lit.assign(g.litLen[:lits])
	g.randomLengths(g.distLen[:dists], g.pick(dists, g.few(dists)), 15)
	g.dist.assign(g.distLen[:dists])

	// Leave out some of the zeros at the ends.
	for lits > 257 && g.litLen[lits-1] == 0 && !g.one(8) {
		lits--
	}
	for dists > 1 && g.distLen[dists-1] == 0 && !g.one(8) {
		dists--
	}
	var list [320]uint8
	copy(list[:], g.litLen[:lits])
	copy(list[lits:], g.distLen[:dists])
	g.runs(list[:lits+dists])

	var used [19]bool
	for _, t := range g.tokens {
		used[t.symbol] = true
	}
	var need []uint16
	for s, u := range used {
		if u || g.one(10) {
			need = append(need, uint16(s))
		}
	}
	g.randomLengths(g.cLen[:19], need, 7)
	g.code.assign(g.cLen[:19])
	order := [19]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	codes := 19
	for codes > 4 && g.cLen[order[codes-1]] == 0 {
		codes--
	}
	g.w.bits(uint64(lits-257), 5).bits(uint64(dists-1), 5).bits(uint64(codes-4), 4)
	for _, s := range order[:codes] {
		g.w.bits(uint64(g.cLen[s]), 3)
	}
	for _, t := range g.tokens {
		g.w.symbol(&g.code, int(t.symbol))
		g.w.bits(uint64(t.extra), uint(t.width))
	}
}

// runs encodes a list of code lengths as tokens, with a random choice of runs.
func (g *generator) runs(list []uint8) {
	g.tokens = g.tokens[:0]
	plain := g.one(6)
	for i := 0; i < len(list); {
		run := 1
		for i+run < len(list) && list[i+run] == list[i] {
			run++
		}
		t, n := token{symbol: list[i]}, 1
		switch {
		case plain:
		case list[i] == 0 && run >= 11 && !g.one(10):
			n = min(run, 138)
			t = token{18, uint8(n - 11), 7}
		case list[i] == 0 && run >= 3 && !g.one(10):
			n = min(run, 10)
			t = token{17, uint8(n - 3), 3}
		case i > 0 && list[i-1] == list[i] && run >= 3:
			n = min(run, 6)
			t = token{16, uint8(n - 3), 2}
		}
		g.tokens = append(g.tokens, t)
		i += n
	}
	if g.one(200) { // a run past the end of the list
		g.tokens = append(g.tokens, token{16, 3, 2})
	}
}

// symbols writes the content of a block with these codes.
func (g *generator) symbols(lit, dist *huffman) {
	var literals, lengths, distances [288]uint16
	var nl, nm, nd int
	for s, n := range lit.lengths {
		switch {
		case n == 0 || s == 256:
		case s < 256:
			literals[nl] = uint16(s)
			nl++
		case s < 286 || g.one(500):
			lengths[nm] = uint16(s)
			nm++
		}
	}
	for s, n := range dist.lengths {
		if n > 0 && (s < 30 || g.one(500)) {
			distances[nd] = uint16(s)
			nd++
		}
	}
	matches := g.rng.IntN(8)
	if g.goal > 1000 {
		matches = 5 + g.rng.IntN(3)
	}
	for count := g.rng.IntN(g.goal + 1); count > 0; count-- {
		if nl > 0 && (nm == 0 || g.rng.IntN(8) >= matches || len(g.out) == 0) {
			s := literals[g.rng.IntN(nl)]
			g.w.symbol(lit, int(s))
			g.out = append(g.out, byte(s))
			continue
		}
		if nm == 0 || nd == 0 && !g.one(20) {
			break
		}
		count -= g.match(lit, dist, int(lengths[g.rng.IntN(nm)]), distances[:nd])
	}
	if lit.lengths[256] > 0 {
		g.w.symbol(lit, 256)
	}
}

// match writes a length and a distance, and returns the number of bytes that they add to out. The distance is seldom
// too far.
func (g *generator) match(lit, dist *huffman, s int, distances []uint16) int {
	base, width := lengthOf(s)
	extra := g.rng.Uint64() & (1<<width - 1)
	far, farWidth, farExtra, symbol := 0, uint(0), uint64(0), -1
	for range 6 {
		if len(distances) == 0 {
			break
		}
		symbol = int(distances[g.rng.IntN(len(distances))])
		far, farWidth = distanceOf(symbol)
		farExtra = g.rng.Uint64() & (1<<farWidth - 1)
		if far += int(farExtra); far <= len(g.out) {
			break
		}
	}
	if far > len(g.out) && !g.one(30) {
		return 0
	}
	g.w.symbol(lit, s)
	g.w.bits(extra, width)
	if symbol < 0 {
		g.w.bits(g.rng.Uint64(), 1)
		return 0
	}
	g.w.symbol(dist, symbol)
	g.w.bits(farExtra, farWidth)
	if far > len(g.out) || far == 0 {
		return 0
	}
	length := base + int(extra)
	for range length {
		g.out = append(g.out, g.out[len(g.out)-far])
	}
	return length
}

// lengthOf and distanceOf compute the tables of RFC 1951, 3.2.5.
func lengthOf(s int) (base int, width uint) {
	switch {
	case s == 285:
		return 258, 0
	case s < 265:
		return s - 254, 0
	case s > 285:
		return 0, 0
	}
	width = uint(s-261) / 4
	return 3 + (4+(s-261)%4)<<width, width
}

func distanceOf(s int) (base int, width uint) {
	if s < 4 {
		return s + 1, 0
	}
	width = uint(s-2) / 2
	return 1 + (2+s%2)<<width, width
}

// mutate makes a few small random changes to a copy of file, which it writes to dst and returns.
func (g *generator) mutate(dst, file []byte) []byte {
	dst = append(dst[:0], file...)
	if len(dst) == 0 {
		return dst
	}
	for range 1 + g.few(3) {
		at := g.rng.IntN(len(dst))
		switch g.rng.IntN(10) {
		default:
			dst[at] ^= 1 << g.rng.IntN(8)
		case 0:
			dst[at] = byte(g.rng.Uint32())
		case 1:
			if at > 0 {
				dst = dst[:at]
			}
		case 2:
			dst = slices.Delete(dst, at, at+1)
		case 3:
			dst = slices.Insert(dst, at, byte(g.rng.Uint32()))
		}
		if len(dst) == 0 {
			break
		}
	}
	return dst
}
