package inflate_test

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kpgzip "github.com/klauspost/compress/gzip"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

// ways are tried on every file of a table.
var ways = []way{
	{},
	{piece: 1, with: true, in: inflate.LeastIn, out: inflate.LeastOut, read: 1},
	{piece: 1, in: inflate.LeastIn, read: 7},
	{piece: 13, with: true, in: inflate.LeastIn + 5, out: inflate.LeastOut + 300, read: 100, reads: 3},
	{piece: 4096, out: inflate.LeastOut + 4321, read: 32 << 10},
	{in: inflate.LeastIn + 1, out: inflate.LeastOut + 1},
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// same compares every way of reading with compress/gzip and fails the test on a difference. It
// returns the result of compress/gzip.
func same(t *testing.T, file []byte) ([]byte, error) {
	t.Helper()
	p, s := &peer{}, &subject{}
	want, err := p.decompress(file)
	for _, w := range ways {
		if d := s.differs(file, w, want, err); d != "" {
			t.Error(d)
		}
	}
	return want, err
}

// stdGzip compresses data with compress/gzip.
func stdGzip(tb testing.TB, level int, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&buf, level)
	must(tb, err)
	_, err = w.Write(data)
	must(tb, err)
	must(tb, w.Close())
	return buf.Bytes()
}

// kpGzip compresses data with the gzip of klauspost/compress, and flushes every 256 KiB.
func kpGzip(tb testing.TB, level int, data []byte) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w, err := kpgzip.NewWriterLevel(&buf, level)
	must(tb, err)
	for i := 0; i < len(data); i += 1 << 18 { // flushes make empty stored blocks
		_, err = w.Write(data[i:min(len(data), i+1<<18)])
		must(tb, err)
		must(tb, w.Flush())
	}
	must(tb, w.Close())
	return buf.Bytes()
}

// sample returns text, noise, repetitions at every distance below 300, zeros, and repetitions from
// far back.
func sample(size int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields(
		"image layer blob chain diff ingest snapshot parent holder seal rootfs staging whiteout opaque",
	)
	out := make([]byte, 0, size+70<<10)
	for len(out) < size {
		switch rng.IntN(6) {
		case 0:
			for range 2000 {
				out = append(append(out, words[rng.IntN(len(words))]...), ' ')
			}
		case 1:
			for range rng.IntN(40 << 10) {
				out = append(out, byte(rng.Uint32()))
			}
		case 2:
			period := 1 + rng.IntN(300)
			for i := range rng.IntN(5000) {
				if i < period || len(out) < period {
					out = append(out, byte(rng.Uint32()))
				} else {
					out = append(out, out[len(out)-period])
				}
			}
		case 3:
			out = append(out, make([]byte, rng.IntN(50<<10))...)
		case 4:
			for range 5000 {
				out = append(out, byte(rng.ExpFloat64()*8))
			}
		case 5:
			for range 200 {
				if far := 1 + rng.IntN(32<<10); far < len(out) {
					n := min(far, 3+rng.IntN(300))
					out = append(out, out[len(out)-far:len(out)-far+n]...)
				}
			}
		}
	}
	return out[:size]
}

// TestLevels decompresses several megabytes, so that both buffers wrap many times, at every level
// of two compressors.
func TestLevels(t *testing.T) {
	data := sample(3 << 20)
	check := func(name string, file []byte) {
		t.Run(name, func(t *testing.T) {
			s := &subject{}
			for _, w := range []way{{}, ways[3], {piece: 1000, in: 999, read: 5000}} {
				if d := s.differs(file, w, data, nil); d != "" {
					t.Error(d)
				}
			}
		})
	}
	for level := stdgzip.HuffmanOnly; level <= stdgzip.BestCompression; level++ {
		check(fmt.Sprintf("std%d", level), stdGzip(t, level, data))
	}
	for level := kpgzip.StatelessCompression; level <= kpgzip.BestCompression; level++ {
		check(fmt.Sprintf("klauspost%d", level), kpGzip(t, level, data))
	}
	for _, size := range []int{0, 1, 2, 255, 1 << 15, 1<<15 + 1, 1<<18 - 263, 1<<18 - 262, 1 << 18, 1<<18 + 1} {
		file := stdGzip(t, stdgzip.DefaultCompression, data[:size])
		got, err := same(t, file)
		if err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestWindow decompresses matches at the greatest distance, at every position relative to the end
// of the buffer.
func TestWindow(t *testing.T) {
	g := newGenerator(3)
	g.header()
	w := &g.w
	noise := make([]byte, 1<<15)
	for i := range noise {
		noise[i] = byte(g.rng.Uint32())
	}
	w.bits(0, 3).bytes(0xff, 0x7f, 0x00, 0x80).bytes(noise[:1<<15-1]...)
	w.bits(3, 3)
	w.symbol(&g.fixedLit, int(noise[1<<15-1]))
	for range 20_000 {
		w.symbol(&g.fixedLit, 257+g.rng.IntN(8)) // 3 to 10 bytes
		w.symbol(&g.fixedDist, 29)
		w.bits(1<<13-1, 13)
	}
	w.symbol(&g.fixedLit, 256)
	p := &peer{}
	file := w.align().b
	want, err := p.decompress(append(file, make([]byte, 8)...))
	if err != stdgzip.ErrChecksum || len(want) < 150_000 {
		t.Fatal(err)
	}
	for out := range 100 {
		s := &subject{}
		if d := s.differs(append(file, make([]byte, 8)...), way{out: inflate.LeastOut + out, in: inflate.LeastIn + out},
			want, err); d != "" {
			t.Fatal(d)
		}
	}
	for i, b := range want {
		if b != noise[i%len(noise)] {
			t.Fatalf("byte %d", i)
		}
	}
}

// TestMembers decompresses many members, with and without content, and refuses a match that refers
// to the previous member.
func TestMembers(t *testing.T) {
	var file, want []byte
	data := sample(100_000)
	for i := range 120 {
		part := data[:i*i%len(data)]
		file = append(file, stdGzip(t, i%10, part)...)
		want = append(want, part...)
	}
	got, err := same(t, file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes and %v, want %d", len(got), err, len(want))
	}
	g := newGenerator(1)
	g.header()
	g.w.bits(3, 3).symbol(&g.fixedLit, 257)
	g.w.symbol(&g.fixedDist, 0)
	_, err = same(t, append(stdGzip(t, 6, []byte("abc")), g.w.align().b...))
	var corrupt flate.CorruptInputError
	if !errors.As(err, &corrupt) {
		t.Errorf("a match into the previous member: %v", err)
	}
}

// small returns short files with one kind of block each.
func small(tb testing.TB) map[string][]byte {
	text := []byte("the layer, the other layer, and the layer below the other layer: 0123456789")
	g := newGenerator(4)
	files := map[string][]byte{
		"empty":     stdGzip(tb, 6, nil),
		"stored":    stdGzip(tb, 0, text),
		"fixed":     stdGzip(tb, 6, text),
		"huffman":   stdGzip(tb, stdgzip.HuffmanOnly, text),
		"dynamic":   stdGzip(tb, 9, sample(400)),
		"stateless": kpGzip(tb, kpgzip.StatelessCompression, text),
		"members":   append(stdGzip(tb, 6, text[:20]), stdGzip(tb, 1, text[20:])...),
		"runs":      stdGzip(tb, 6, bytes.Repeat([]byte("ab"), 3000)),
	}
	for i := range 6 {
		var file []byte
		for len(file) < 60 || len(file) > 250 {
			file = append(file[:0], g.file(40)...)
		}
		files[fmt.Sprintf("generated%d", i)] = file
	}
	return files
}

// TestCut decompresses every prefix of a file, alone, followed by zero bytes, and followed by other
// bytes.
func TestCut(t *testing.T) {
	for name, file := range small(t) {
		t.Run(name, func(t *testing.T) {
			for n := range file {
				_, err := same(t, file[:n])
				if name != "members" && !strings.HasPrefix(name, "generated") && n > 0 && err != io.ErrUnexpectedEOF {
					t.Errorf("%d bytes: %v", n, err)
				}
				same(t, append(file[:n:n], make([]byte, 50)...))
				same(t, append(file[:n:n], bytes.Repeat([]byte{0xff}, 50)...))
			}
		})
	}
}

// TestFlips flips every bit of a file.
func TestFlips(t *testing.T) {
	for name, file := range small(t) {
		t.Run(name, func(t *testing.T) {
			for i := range 8 * len(file) {
				flipped := bytes.Clone(file)
				flipped[i/8] ^= 1 << (i % 8)
				same(t, flipped)
			}
		})
	}
}

// TestSources shows that the result does not depend on how the source returns its bytes and errors.
func TestSources(t *testing.T) {
	data := sample(300_000)
	file := stdGzip(t, 6, data)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"one byte": iotest.OneByteReader,
		"half":     iotest.HalfReader,
		"data and error": func(r io.Reader) io.Reader {
			return iotest.DataErrReader(r)
		},
	} {
		got, err := io.ReadAll(inflate.New(wrap(bytes.NewReader(file)), nil))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	must(t, iotest.TestReader(inflate.New(bytes.NewReader(file), nil), data))

	fault := errors.New("connection lost")
	for _, cut := range []int{0, 5, 10, 11, 15, 500, 40_000, len(file) - 8, len(file) - 1, len(file)} {
		src := func() io.Reader { return io.MultiReader(bytes.NewReader(file[:cut]), iotest.ErrReader(fault)) }
		var want []byte
		if z, err := stdgzip.NewReader(src()); err == nil {
			want, err = io.ReadAll(z)
			if err != fault {
				t.Fatalf("cut at %d: compress/gzip returns %v", cut, err)
			}
		}
		got, err := io.ReadAll(inflate.New(src(), nil))
		if err != fault || !bytes.Equal(got, want) {
			t.Errorf("cut at %d: %d bytes and %v, want %d", cut, len(got), err, len(want))
		}
	}
	if _, err := inflate.New(iotest.ErrReader(nil), nil).Read(make([]byte, 1)); err != io.ErrNoProgress {
		t.Errorf("a source that returns nothing: %v", err)
	}
}

// stubborn is a writer that accepts take bytes at a time and returns err.
type stubborn struct {
	bytes.Buffer
	take int
	err  error
}

func (s *stubborn) Write(p []byte) (int, error) {
	s.Buffer.Write(p[:min(len(p), s.take)])
	return min(len(p), s.take), s.err
}

// TestWriteTo shows that bytes that a writer does not accept are not lost.
func TestWriteTo(t *testing.T) {
	data := sample(700_000)
	full := errors.New("disk full")
	for _, fault := range []error{nil, full} {
		z := inflate.New(bytes.NewReader(stdGzip(t, 6, data)), nil)
		w := &stubborn{take: 100_000, err: fault}
		var total int64
		faults := 0
		for {
			n, err := z.WriteTo(w)
			total += n
			if err == nil {
				break
			}
			if want := fault; err != want && !(want == nil && err == io.ErrShortWrite) {
				t.Fatal(err)
			}
			var p [10]byte
			k, err := io.ReadFull(z, p[:])
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			w.Buffer.Write(p[:k])
			total += int64(k)
			faults++
		}
		if total != int64(len(data)) || !bytes.Equal(w.Bytes(), data) || faults < 6 {
			t.Errorf("%d bytes in %d pieces, want %d", total, faults, len(data))
		}
	}
}

// TestClose shows that Close releases the memory once, and that a closed Reader reads only after a
// Reset.
func TestClose(t *testing.T) {
	file := stdGzip(t, 6, []byte("content"))
	z := inflate.New(bytes.NewReader(file), nil)
	if n, err := z.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of an empty buffer: %d, %v", n, err)
	}
	must(t, z.Close())
	must(t, z.Close())
	if _, err := z.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("Read of a closed reader: %v", err)
	}
	if _, err := z.WriteTo(io.Discard); err == nil {
		t.Error("WriteTo of a closed reader succeeds")
	}
	z.Reset(bytes.NewReader(file))
	if got, err := io.ReadAll(z); err != nil || string(got) != "content" {
		t.Errorf("%q, %v after Close and Reset", got, err)
	}
	src := bytes.NewReader(nil)
	if n := testing.AllocsPerRun(100, func() {
		src.Reset(file)
		z := inflate.New(src, nil)
		if _, err := z.WriteTo(io.Discard); err != nil {
			t.Error(err)
		}
		z.Close()
	}); n > 1 {
		t.Errorf("%v allocations per file", n)
	}
}
