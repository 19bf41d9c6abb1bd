package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

// peer decompresses with compress/gzip and reuses its memory.
type peer struct {
	z   stdgzip.Reader
	in  bytes.Reader
	out []byte
}

func (p *peer) decompress(file []byte) ([]byte, error) {
	p.in.Reset(file)
	p.out = p.out[:0]
	err := p.z.Reset(&p.in)
	for err == nil {
		if cap(p.out)-len(p.out) < 512 {
			p.out = append(p.out, make([]byte, len(p.out)+1024)...)[:len(p.out)]
		}
		var n int
		n, err = p.z.Read(p.out[len(p.out):cap(p.out)])
		p.out = p.out[:len(p.out)+n]
	}
	if err == io.EOF {
		err = nil
	}
	return p.out, err
}

// pieces is a source that returns at most size bytes per call. If with is true, it returns io.EOF with the last bytes.
type pieces struct {
	rest []byte
	size int
	with bool
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b[:min(p.size, len(b))], p.rest)
	p.rest = p.rest[n:]
	if len(p.rest) == 0 && (n == 0 || p.with) {
		return n, io.EOF
	}
	return n, nil
}

// way describes how a file is decompressed.
type way struct {
	piece   int  // bytes that the source returns per call; 0: all
	with    bool // the source returns io.EOF with the last bytes
	in, out int  // limits for Shrink; 0: none
	read    int  // bytes per Read; 0: only WriteTo is called
	reads   int  // calls of Read before WriteTo takes over; 0: only Read is called
}

// subject decompresses with one Reader, which it reuses.
type subject struct {
	z   *inflate.Reader
	src pieces
	out []byte
}

func (s *subject) Write(p []byte) (int, error) {
	s.out = append(s.out, p...)
	return len(p), nil
}

func (s *subject) decompress(file []byte, w way) ([]byte, error) {
	s.src = pieces{file, w.piece, w.with}
	if w.piece == 0 {
		s.src.size = len(file) + 1
	}
	if s.z == nil {
		s.z = inflate.New(&s.src, nil)
	} else {
		s.z.Reset(&s.src)
	}
	if w.in > 0 || w.out > 0 {
		s.z.Shrink(w.in, w.out)
	}
	s.out = s.out[:0]
	for i := 0; w.read > 0 && (w.reads == 0 || i < w.reads); i++ {
		at := len(s.out)
		for cap(s.out) < at+w.read {
			s.out = append(s.out[:cap(s.out)], 0)
		}
		n, err := s.z.Read(s.out[at : at+w.read])
		s.out = s.out[:at+n]
		if err == io.EOF {
			return s.out, nil
		} else if err != nil {
			return s.out, err
		}
	}
	_, err := s.z.WriteTo(s)
	return s.out, err
}

// differ describes how the two decoders disagree about a file. It returns "" if they agree.
func differ(p *peer, s *subject, file []byte, w way) string {
	want, wantErr := p.decompress(file)
	return s.differs(file, w, want, wantErr)
}

// differs is like differ, for a file whose result with compress/gzip is known.
func (s *subject) differs(file []byte, w way, want []byte, wantErr error) string {
	got, err := s.decompress(file, w)
	if err != wantErr {
		return fmt.Sprintf("error %v after %d bytes, compress/gzip %v after %d bytes, %+v",
			err, len(got), wantErr, len(want), w)
	}
	if !bytes.Equal(got, want) {
		return fmt.Sprintf("other output: %d bytes, compress/gzip %d bytes, both with error %v, %+v",
			len(got), len(want), err, w)
	}
	return ""
}

// randomWay returns a random way. Fast ways are more frequent than slow ones.
func randomWay(rng *rand.Rand) way {
	var w way
	r := rng.Uint32()
	switch r & 7 {
	case 0:
		w.piece = 1
	case 1, 2:
		w.piece = 1 + int(r>>8&15)
	case 3:
		w.piece = 1 + int(r>>8&255)
	}
	w.with = r>>3&1 == 0
	if r>>4&1 == 0 {
		w.in = inflate.LeastIn + int(r>>16&63)
	}
	switch r >> 5 & 3 {
	case 0:
		w.out = inflate.LeastOut + int(r>>16&1023)
	case 1:
		w.out = inflate.LeastOut + int(r>>16)
	}
	switch r >> 22 & 7 {
	case 0:
		w.read = 1 + int(r>>25&7)
	case 1, 2:
		w.read = 1 + int(r>>25&127)
		w.reads = int(r>>28&7) + 1
	case 3:
		w.read = 4096
	}
	return w
}

// run compares the decoders in about so many executions and stops at the first difference. It adds the number of valid
// files to valid.
func run(g *generator, runs int, valid *int) (file []byte, difference string, done int) {
	p, s := &peer{}, &subject{}
	var mutant, base []byte
	for done < runs {
		size := 1 + g.rng.IntN(8<<g.rng.IntN(5))
		large := done&0x3ff < 8
		if large {
			size = 1 << (14 + g.rng.IntN(5))
		}
		base = append(base[:0], g.file(size)...)
		variants := 8
		if large {
			variants = 2
		}
		for i := range variants {
			file := base
			if i > 0 {
				mutant = g.mutate(mutant, base)
				file = mutant
			}
			want, wantErr := p.decompress(file)
			if wantErr == nil {
				*valid++
			}
			done++
			if d := s.differs(file, randomWay(g.rng), want, wantErr); d != "" {
				return file, d, done
			}
		}
	}
	return nil, "", done
}

// TestDifferential compares the decoder with compress/gzip for about a second.
func TestDifferential(t *testing.T) { compare(t, 30_000, 1) }

// TestDifferentialLong compares the decoders in TANK_INFLATE_RUNS executions. The first seed is TANK_INFLATE_SEED, or
// the current time if that is not set.
func TestDifferentialLong(t *testing.T) {
	if os.Getenv("TANK_INFLATE_RUNS") == "" {
		t.Skip("TANK_INFLATE_RUNS is not set to a number of executions")
	}
	runs, err := strconv.Atoi(os.Getenv("TANK_INFLATE_RUNS"))
	must(t, err)
	seed := uint64(time.Now().UnixNano())
	if env := os.Getenv("TANK_INFLATE_SEED"); env != "" {
		seed, err = strconv.ParseUint(env, 10, 64)
		must(t, err)
	}
	compare(t, runs, seed)
}

func compare(t *testing.T, runs int, seed uint64) {
	begin, valid, done := time.Now(), 0, 0
	for piece := uint64(0); done < runs; piece++ {
		file, difference, n := run(newGenerator(seed+piece<<32), min(runs-done, 1_000_000), &valid)
		done += n
		if difference != "" {
			t.Fatalf("seed %d piece %d: %s\n%s", seed, piece, difference, base64.StdEncoding.EncodeToString(file))
		}
		if runs > 1_000_000 { // printed at once, unlike t.Log
			fmt.Printf("seed %d: %d executions, %d valid files, no difference, %.0f/s\n", seed, done, valid,
				float64(done)/time.Since(begin).Seconds())
		}
	}
	t.Logf("%d executions, %d valid files, no difference, %.0f/s",
		done, valid, float64(done)/time.Since(begin).Seconds())
}
