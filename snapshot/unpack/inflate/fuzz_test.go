package inflate_test

import (
	"math/rand/v2"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

// FuzzDifferential compares bytes, errors and offsets with those of compress/gzip for random ways
// of reading, which the seed chooses.
func FuzzDifferential(f *testing.F) {
	for _, file := range small(f) {
		f.Add(file, uint64(1))
	}
	for seed := range uint64(20) {
		f.Add(append([]byte(nil), newGenerator(seed).file(60)...), seed)
	}
	f.Fuzz(func(t *testing.T, file []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		p, s := &peer{}, &subject{}
		want, err := p.decompress(file)
		for range 3 {
			if d := s.differs(file, randomWay(rng), want, err); d != "" {
				t.Error(d)
			}
		}
		s.z.Close()
	})
}

// FuzzBlocks is like FuzzDifferential but mutates only what follows the gzip header, so that no
// mutation destroys the header.
func FuzzBlocks(f *testing.F) {
	for _, file := range small(f) {
		f.Add(file[10:], uint16(0))
	}
	f.Fuzz(func(t *testing.T, blocks []byte, at uint16) {
		file := gzipOf(blocks, "")
		s := &subject{}
		for _, w := range []way{{}, {piece: 1, in: inflate.LeastIn + int(at), read: 1 + int(at)}} {
			if d := differ(&peer{}, s, file, w); d != "" {
				t.Error(d)
			}
		}
		s.z.Close()
	})
}
