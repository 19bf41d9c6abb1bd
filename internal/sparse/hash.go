package sparse

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/zeebo/xxh3"
)

// Hash computes XXH3-128 of bytes and of runs of zeros. It does not process each zero, so a gigabyte of zeros
// takes a few milliseconds. The result is that of package xxh3
// (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
//
// The zero value is ready for use.
type Hash struct {
	acc   [lanes]uint64
	total uint64
	n     int             // bytes in block
	block [blockSize]byte // the last bytes, which are accumulated when more bytes follow
	tail  [stripe]byte    // the end of the previous block
}

const (
	lanes     = 8
	stripe    = 64 // bytes
	stripes   = 16 // in a block
	blockSize = stripes * stripe
	short     = 240 // up to this length XXH3 uses another algorithm

	prime32x1 = 0x9E3779B1
	prime32x2 = 0x85EBCA77
	prime32x3 = 0xC2B2AE3D
	prime64x1 = 0x9E3779B185EBCA87
	prime64x2 = 0xC2B2AE3D27D4EB4F
	prime64x3 = 0x165667B19E3779F9
	prime64x4 = 0x85EBCA77C2B2AE63
	prime64x5 = 0x27D4EB2F165667C5
	avalanche = 0x165667919E3779F9
)

var start = [lanes]uint64{prime32x3, prime64x1, prime64x2, prime64x3, prime64x4, prime32x2, prime64x5, prime32x1}

// secret is the default secret of XXH3.
var secret = [192]byte{
	0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
	0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
	0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
	0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
	0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
	0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
	0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
	0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
	0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
	0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
	0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
	0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
}

// secretAt returns the eight bytes of the secret at an offset.
func secretAt(at int) uint64 { return binary.LittleEndian.Uint64(secret[at:]) }

// zeroBlock is the value that a block of zeros adds to each lane. scramble is mixed into each lane after a block.
var zeroBlock, scramble = func() (add, mix [lanes]uint64) {
	for i := range lanes {
		for s := range stripes {
			key := secretAt(8*s + 8*i)
			add[i] += (key & 0xFFFFFFFF) * (key >> 32)
		}
		mix[i] = secretAt(len(secret) - stripe + 8*i)
	}
	return add, mix
}()

// Write adds bytes. It never fails.
func (h *Hash) Write(p []byte) (int, error) {
	all := len(p)
	h.begin(uint64(all))
	for len(p) > 0 {
		h.flush()
		n := copy(h.block[h.n:], p)
		h.n, p = h.n+n, p[n:]
	}
	return all, nil
}

// Zeros adds n zeros.
func (h *Hash) Zeros(n int64) {
	h.begin(uint64(n))
	for n > 0 {
		h.flush()
		if h.n == 0 && n > blockSize {
			blocks := (n - 1) / blockSize
			zeroBlocks(&h.acc, blocks)
			h.tail = [stripe]byte{}
			n -= blocks * blockSize
		}
		fill := int(min(n, int64(blockSize-h.n)))
		clear(h.block[h.n : h.n+fill])
		h.n, n = h.n+fill, n-int64(fill)
	}
}

func (h *Hash) begin(more uint64) {
	if h.total == 0 {
		h.acc = start
	}
	h.total += more
}

// flush accumulates the block if it is full and more bytes follow.
func (h *Hash) flush() {
	if h.n < blockSize {
		return
	}
	for s := range stripes {
		accumulate(&h.acc, h.block[s*stripe:], 8*s)
	}
	for i := range h.acc {
		h.acc[i] = mixed(h.acc[i], scramble[i])
	}
	copy(h.tail[:], h.block[blockSize-stripe:])
	h.n = 0
}

// Sum128 returns the hash, big-endian.
func (h *Hash) Sum128() [16]byte {
	if h.total <= short {
		return xxh3.Hash128(h.block[:h.n]).Bytes()
	}
	acc := h.acc
	for s := range (h.n - 1) / stripe {
		accumulate(&acc, h.block[s*stripe:], 8*s)
	}
	var last [stripe]byte
	if h.n >= stripe {
		copy(last[:], h.block[h.n-stripe:h.n])
	} else {
		copy(last[copy(last[:], h.tail[h.n:]):], h.block[:h.n])
	}
	const lastSecret, lowSecret, highSecret = len(secret) - stripe - 7, 11, len(secret) - stripe - 11
	accumulate(&acc, last[:], lastSecret)
	low := merge(&acc, lowSecret, h.total*prime64x1)
	high := merge(&acc, highSecret, ^(h.total * prime64x2))
	return xxh3.Uint128{Hi: high, Lo: low}.Bytes()
}

// accumulate adds one stripe, with the secret at an offset.
func accumulate(acc *[lanes]uint64, p []byte, at int) {
	p = p[:stripe]
	for i := range lanes {
		value := binary.LittleEndian.Uint64(p[8*i:])
		key := value ^ secretAt(at+8*i)
		acc[i^1] += value
		acc[i] += (key & 0xFFFFFFFF) * (key >> 32)
	}
}

func mixed(acc, key uint64) uint64 { return (acc ^ acc>>47 ^ key) * prime32x1 }

// parallelBlocks is the number of blocks above which the lanes are computed in parallel.
const parallelBlocks = 1 << 20

// zeroBlocks adds blocks of zeros. The lanes do not depend on each other.
func zeroBlocks(acc *[lanes]uint64, n int64) {
	if n < parallelBlocks {
		fourLanes(acc, 0, n)
		fourLanes(acc, lanes/2, n)
		return
	}
	var other sync.WaitGroup
	other.Go(func() { fourLanes(acc, 0, n) })
	fourLanes(acc, lanes/2, n)
	other.Wait()
}

func fourLanes(acc *[lanes]uint64, i int, n int64) {
	a, b, c, d := acc[i], acc[i+1], acc[i+2], acc[i+3]
	aAdd, bAdd, cAdd, dAdd := zeroBlock[i], zeroBlock[i+1], zeroBlock[i+2], zeroBlock[i+3]
	aMix, bMix, cMix, dMix := scramble[i], scramble[i+1], scramble[i+2], scramble[i+3]
	for range n {
		a, b, c, d = mixed(a+aAdd, aMix), mixed(b+bAdd, bMix), mixed(c+cAdd, cMix), mixed(d+dAdd, dMix)
	}
	acc[i], acc[i+1], acc[i+2], acc[i+3] = a, b, c, d
}

// merge folds the lanes into 64 bits.
func merge(acc *[lanes]uint64, at int, sum uint64) uint64 {
	for i := 0; i < lanes; i += 2 {
		hi, lo := bits.Mul64(acc[i]^secretAt(at+8*i), acc[i+1]^secretAt(at+8*i+8))
		sum += hi ^ lo
	}
	sum = (sum ^ sum>>37) * avalanche
	return sum ^ sum>>32
}
