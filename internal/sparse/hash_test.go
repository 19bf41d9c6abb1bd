package sparse_test

import (
	"math/rand/v2"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/internal/sparse"
)

// TestHash compares the hash of bytes and runs of zeros, in pieces of all lengths, with the hash of package xxh3.
func TestHash(t *testing.T) {
	noise := make([]byte, 16<<10)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(noise)
	add := func(h *sparse.Hash, all []byte, n int, zeros bool) []byte {
		if zeros {
			h.Zeros(int64(n))
			return append(all, make([]byte, n)...)
		}
		_, _ = h.Write(noise[:n])
		return append(all, noise[:n]...)
	}
	check := func(h *sparse.Hash, all []byte) {
		t.Helper()
		if got, want := h.Sum128(), xxh3.Hash128(all).Bytes(); got != want {
			t.Fatalf("%d bytes: %x, want %x", len(all), got, want)
		}
	}
	for n := range 3000 {
		for _, zeros := range []bool{false, true} {
			var h sparse.Hash
			check(&h, add(&h, nil, n, zeros))
		}
	}
	for range 2000 {
		var h sparse.Hash
		var all []byte
		for range rnd.Uint64() % 6 {
			longest := []uint64{10, 300, 3000, 9000}[rnd.Uint64()%4]
			all = add(&h, all, int(rnd.Uint64()%longest), rnd.Uint64()%2 == 0)
			check(&h, all) // a sum ends nothing
		}
	}
}

// TestHashOfManyZeros hashes runs of zeros that are long enough for several goroutines, and one for which
// hashing each zero would take minutes.
func TestHashOfManyZeros(t *testing.T) {
	const gigabyte = 1 << 30
	var h sparse.Hash
	_, _ = h.Write([]byte("begin"))
	h.Zeros(gigabyte + 7)
	_, _ = h.Write([]byte("end"))
	want := xxh3.New()
	_, _ = want.WriteString("begin")
	zeros := make([]byte, 1<<20)
	for range gigabyte / len(zeros) {
		_, _ = want.Write(zeros)
	}
	_, _ = want.Write(zeros[:7])
	_, _ = want.WriteString("end")
	if got := h.Sum128(); got != want.Sum128().Bytes() {
		t.Errorf("%x, want %x", got, want.Sum128().Bytes())
	}
	h.Zeros(64 * gigabyte)
}

func BenchmarkZeros(b *testing.B) {
	const n = 1 << 30
	b.SetBytes(n)
	var h sparse.Hash
	for b.Loop() {
		h.Zeros(n)
	}
}

func BenchmarkWrite(b *testing.B) {
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	var h sparse.Hash
	for b.Loop() {
		_, _ = h.Write(p)
	}
}
