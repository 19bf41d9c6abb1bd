package inflate_test

import (
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

// stream writes the blocks of a deflate stream bit by bit.
type stream struct {
	bitWriter
	lit, dist huffman
}

// fixed begins the last block, with the fixed codes.
func (s *stream) fixed() *stream {
	g := newGenerator(0)
	s.lit, s.dist = g.fixedLit, g.fixedDist
	s.bits(3, 3)
	return s
}

// dynamic begins the last block, with codes of these lengths. It encodes each length in 4 bits, without runs.
func (s *stream) dynamic(lit, dist []uint8) *stream {
	s.lit.assign(lit)
	s.dist.assign(dist)
	s.bits(5, 3).bits(uint64(len(lit)-257), 5).bits(uint64(len(dist)-1), 5).bits(15, 4)
	order := []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	plain := make([]uint8, 19)
	for i := range 16 {
		plain[i] = 4
	}
	for _, i := range order {
		s.bits(uint64(plain[i]), 3)
	}
	var code huffman
	code.assign(plain)
	for _, n := range slices.Concat(lit, dist) {
		s.symbol(&code, int(n))
	}
	return s
}

// runs begins the last block, with dynamic codes whose lengths are given as pairs of a symbol of the code for code
// lengths and its extra bits. In that code, symbols 16, 17 and 18 have 2 bits, and lengths 1 and 8 have 3.
func (s *stream) runs(lits, dists int, symbols ...[2]int) *stream {
	s.bits(5, 3).bits(uint64(lits-257), 5).bits(uint64(dists-1), 5).bits(18-4, 4)
	for _, n := range []uint64{2, 2, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3} {
		s.bits(n, 3)
	}
	var code huffman
	code.assign([]uint8{1: 3, 8: 3, 16: 2, 17: 2, 18: 2})
	for _, x := range symbols {
		s.symbol(&code, x[0])
		switch x[0] {
		case 16:
			s.bits(uint64(x[1]), 2)
		case 17:
			s.bits(uint64(x[1]), 3)
		case 18:
			s.bits(uint64(x[1]), 7)
		}
	}
	return s
}

func (s *stream) text(text string) *stream {
	for _, c := range []byte(text) {
		s.symbol(&s.lit, int(c))
	}
	return s
}

func (s *stream) match(length, distance int, extra ...uint64) *stream {
	extra = append(extra, 0, 0)
	_, n := lengthOf(length)
	s.symbol(&s.lit, length)
	s.bits(extra[0], n)
	_, n = distanceOf(distance)
	s.symbol(&s.dist, distance)
	s.bits(extra[1], n)
	return s
}

func (s *stream) end() []byte {
	s.symbol(&s.lit, 256)
	return s.align().b
}

func (s *stream) raw(v uint64, n uint) *stream {
	s.bits(v, n)
	return s
}

// lengths returns a list of n code lengths that are zero except those in set.
func lengths(n int, set map[int]uint8) []uint8 {
	list := make([]uint8, n)
	for i, v := range set {
		list[i] = v
	}
	return list
}

// deep returns the lengths of a complete code: 1, 2, 3 and so on up to 15 bits for the symbols in turn, the last two of
// 15 bits each.
func deep(n int, symbols ...int) []uint8 {
	list := make([]uint8, n)
	for i, s := range symbols {
		list[s] = uint8(min(i+1, 15))
	}
	return list
}

// gzipOf returns a gzip member of these blocks, with the checksum and the size of content.
func gzipOf(blocks []byte, content string) []byte {
	file := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, blocks...)
	file = binary.LittleEndian.AppendUint32(file, crc32.ChecksumIEEE([]byte(content)))
	return binary.LittleEndian.AppendUint32(file, uint32(len(content)))
}

const corrupt = "corrupt"

// TestCodes checks what RFC 1951 allows and forbids, and where compress/flate deviates from it. want is the content, or
// corrupt if the stream has to be refused.
func TestCodes(t *testing.T) {
	a, z := int('a'), int('z')
	two := map[int]uint8{a: 1, 256: 1}
	three := map[int]uint8{a: 1, 256: 2, 257: 2}
	deepLit := deep(286, a, 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', z, 256, 285)
	deepDist := deep(30, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	far := strings.Repeat("0123456789abcdef", 2048)
	for _, tc := range []struct {
		name   string
		blocks []byte
		want   string
	}{
		{"fixed", new(stream).fixed().text("hello").end(), "hello"},
		{"fixed, all literals", new(stream).fixed().text("\x00\x8f\x90\xff").end(), "\x00\x8f\x90\xff"},
		{"fixed, a match", new(stream).fixed().text("abc").match(260, 2).end(), "abcabcabc"},
		{"length 258 of symbol 285", new(stream).fixed().text("a").match(285, 0).end(), strings.Repeat("a", 259)},
		{"length 258 of symbol 284", new(stream).fixed().text("a").match(284, 0, 31).end(), strings.Repeat("a", 259)},
		{"fixed, length symbol 286", new(stream).fixed().text("a").match(286, 0).end(), corrupt},
		{"fixed, length symbol 287", new(stream).fixed().text("a").match(287, 0).end(), corrupt},
		{"fixed, distance symbol 30", new(stream).fixed().text("a").match(257, 30).end(), corrupt},
		{"fixed, distance symbol 31", new(stream).fixed().text("a").match(257, 31).end(), corrupt},
		{"a distance before the beginning", new(stream).fixed().text("abc").match(257, 3).end(), corrupt},
		{"a match at the beginning", new(stream).fixed().match(257, 0).end(), corrupt},
		{"block type 3", []byte{7}, corrupt},
		{"stored", []byte{1, 3, 0, 0xfc, 0xff, 'a', 'b', 'c'}, "abc"},
		{"stored, empty", []byte{1, 0, 0, 0xff, 0xff}, ""},
		{"stored, many empty", append([]byte(strings.Repeat("\x00\x00\x00\xff\xff", 1000)), 1, 0, 0, 0xff, 0xff), ""},
		{"stored, wrong complement of the length", []byte{1, 3, 0, 0xfc, 0xfe, 'a', 'b', 'c'}, corrupt},
		{"stored, padding that is not zero", []byte{0xf9, 1, 0, 0xfe, 0xff, 'a'}, "a"},
		{"the longest stored block and the farthest match", append([]byte("\x00\x00\x80\xff\x7f"+far),
			new(stream).fixed().match(285, 29, 0, 1<<13-1).end()...), far + far[:258]},
		{"a match that is too far by one",
			append([]byte("\x00\xff\x7f\x00\x80"+far[1:]), new(stream).fixed().match(285, 29, 0, 1<<13-1).end()...),
			corrupt},

		{"two literals", new(stream).dynamic(lengths(257, two), lengths(1, nil)).text("aaaa").end(), "aaaa"},
		{"codes of 15 bits", new(stream).dynamic(deepLit, deepDist).text("abmz").match(285, 1).match(285, 3).end(),
			"abmz" + strings.Repeat("mz", 129) + strings.Repeat("mzmz", 64) + "mz"},
		{"a distance code of 15 bits",
			new(stream).dynamic(deepLit, deepDist).text(strings.Repeat("a", 200)).match(285, 14, 0, 63).
				match(285, 15, 0, 0).end(), strings.Repeat("a", 716)},
		{"no distance code, none used", new(stream).dynamic(lengths(258, three), lengths(1, nil)).text("a").end(), "a"},
		{"no distance code, one used",
			new(stream).dynamic(lengths(258, three), lengths(1, nil)).text("a").raw(3, 2).raw(0, 9).end(), corrupt},
		{"one distance code", new(stream).dynamic(lengths(258, three), []uint8{1}).text("a").match(257, 0).end(),
			"aaaa"},
		{"one distance code, the other used",
			new(stream).dynamic(lengths(258, three), []uint8{1}).text("a").raw(3, 2).raw(1, 1).end(), corrupt},
		{"one distance code of two bits", new(stream).dynamic(lengths(258, three), []uint8{2}).text("a").end(),
			corrupt},
		{"one literal code, the end", new(stream).dynamic(lengths(257, map[int]uint8{256: 1}), []uint8{0}).end(), ""},
		{"one literal code, the other used",
			new(stream).dynamic(lengths(257, map[int]uint8{256: 1}), []uint8{0}).raw(1, 1).end(), corrupt},
		{"one literal code of two bits", new(stream).dynamic(lengths(257, map[int]uint8{256: 2}), []uint8{0}).end(),
			corrupt},
		{"no literal code", new(stream).dynamic(lengths(257, nil), []uint8{0}).raw(0, 9).align().b, corrupt},
		{"literals over-subscribed",
			new(stream).dynamic(lengths(257, map[int]uint8{a: 1, z: 1, 256: 1}), []uint8{0}).raw(0, 9).align().b,
			corrupt},
		{"literals incomplete",
			new(stream).dynamic(lengths(257, map[int]uint8{a: 2, z: 2, 256: 2}), []uint8{0}).raw(0, 9).align().b,
			corrupt},
		{"distances over-subscribed", new(stream).dynamic(lengths(257, two), []uint8{1, 1, 1}).end(), corrupt},
		{"distances incomplete", new(stream).dynamic(lengths(257, two), []uint8{2, 2, 2}).end(), corrupt},
		{"287 literals", new(stream).dynamic(lengths(287, two), []uint8{0}).end(), corrupt},
		{"31 distances", new(stream).dynamic(lengths(257, two), lengths(31, nil)).end(), corrupt},
		{"30 distances", new(stream).dynamic(lengths(257, two), lengths(30, nil)).end(), ""},
		{"no code for code lengths", new(stream).raw(5, 3).raw(0, 14).raw(0, 12).raw(0, 64/2).align().b, corrupt},
		{"the code for code lengths incomplete", new(stream).raw(5, 3).raw(0, 14).raw(2, 12).raw(0, 64/2).align().b,
			corrupt},
		{"the code for code lengths over-subscribed",
			new(stream).raw(5, 3).raw(0, 14).raw(1|1<<3|1<<6, 12).raw(0, 64/2).align().b, corrupt},

		{"a run across both lists of lengths",
			new(stream).runs(257, 2, [2]int{18, 127}, [2]int{18, 106}, [2]int{1, 0}, [2]int{16, 0}).
				raw(4, 3).align().b, "\xff\xff"},
		{"a run without a length before it", new(stream).runs(257, 1, [2]int{16, 0}).raw(0, 50).align().b, corrupt},
		{"a run to the end",
			new(stream).runs(257, 3, [2]int{18, 127}, [2]int{18, 107}, [2]int{1, 0}, [2]int{17, 0}).raw(0, 1).align().b,
			""},
		{"a run past the end",
			new(stream).runs(257, 2, [2]int{18, 127}, [2]int{18, 107}, [2]int{1, 0}, [2]int{17, 0}).raw(0,
				50).align().b,
			corrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			content := tc.want
			if content == corrupt {
				content = ""
			}
			file := gzipOf(tc.blocks, content)
			for range 2 { // near the end of the input, and then far from it, where the fast loop decodes
				got, err := same(t, file)
				var class flate.CorruptInputError
				if tc.want == corrupt {
					if !errors.As(err, &class) {
						t.Errorf("%q and %v, want a corrupt input", got, err)
					}
				} else if err != nil || !strings.HasPrefix(string(got), tc.want) {
					t.Errorf("%d bytes and %v, want %d", len(got), err, len(tc.want))
				}
				file = append(file, stdGzip(t, 0, make([]byte, 100))...)
			}
		})
	}
}

// TestHeaders checks that headers (RFC 1952, 2.3) are read as compress/gzip reads them.
func TestHeaders(t *testing.T) {
	body := stdGzip(t, 6, []byte("content"))[10:]
	head := func(flags byte, more ...string) []byte {
		file := append([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 3}, strings.Join(more, "")...)
		if flags&2 != 0 {
			file = binary.LittleEndian.AppendUint16(file, uint16(crc32.ChecksumIEEE(file)))
		}
		return append(file, body...)
	}
	wrong := head(2)
	wrong[10] ^= 1
	for _, tc := range []struct {
		name string
		file []byte
		want error
	}{
		{"plain", head(0), nil},
		{"text", head(1), nil},
		{"header checksum", head(2), nil},
		{"wrong header checksum", wrong, stdgzip.ErrHeader},
		{"extra", head(4, "\x03\x00abc"), nil},
		{"no extra", head(4, "\x00\x00"), nil},
		{"the longest extra", head(4, "\xff\xff", strings.Repeat("x", 65535)), nil},
		{"name", head(8, "name\x00"), nil},
		{"name of 511", head(8, strings.Repeat("n", 511), "\x00"), nil},
		{"name of 512", head(8, strings.Repeat("n", 512), "\x00"), stdgzip.ErrHeader},
		{"name without end", append([]byte{0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0}, "name"...), io.ErrUnexpectedEOF},
		{"comment", head(16, "\xe9\x00"), nil},
		{"comment of 512", head(16, strings.Repeat("n", 512), "\x00"), stdgzip.ErrHeader},
		{"everything", head(31, "\x01\x00x", "name\x00", "comment\x00"), nil},
		{"reserved flags", head(0xe0), nil},
		{"another method", append([]byte{0x1f, 0x8b, 7}, head(0)[3:]...), stdgzip.ErrHeader},
		{"another magic", append([]byte{0x1f, 0x8a}, head(0)[2:]...), stdgzip.ErrHeader},
		{"another magic, truncated", []byte{0x1f, 0x8a}, io.ErrUnexpectedEOF},
		{"empty input", nil, nil},
		{"trailing zeros", append(head(0), make([]byte, 10)...), stdgzip.ErrHeader},
		{"one trailing zero", append(head(0), 0), io.ErrUnexpectedEOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := same(t, tc.file); err != tc.want {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}
