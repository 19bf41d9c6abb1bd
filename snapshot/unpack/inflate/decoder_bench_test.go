package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"math"
	"math/rand/v2"
	"testing"
)

// BenchmarkDecoder measures the decoders on generated data, which is the same on every machine; BenchmarkLayers
// measures real layers. To compare decoders use TestRatios, which runs them in turn; here each of them runs alone.
func BenchmarkDecoder(b *testing.B) {
	for _, row := range []struct {
		name string
		data []byte
	}{{"text", wordsOf(16<<20, 0)}, {"binary", wordsOf(16<<20, 6)}} {
		var blob bytes.Buffer
		z := stdgzip.NewWriter(&blob)
		_, err := z.Write(row.data)
		must(b, err)
		must(b, z.Close())
		for _, d := range decodersUnderTest {
			b.Run(row.name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(len(row.data)))
				b.ReportAllocs()
				for b.Loop() {
					n, err := d.run(io.Discard, blob.Bytes())
					must(b, err)
					if n != int64(len(row.data)) {
						b.Fatalf("%d bytes", n)
					}
				}
			})
		}
	}
}

// wordsOf returns size bytes of words, some of them frequent. At most noise random bytes follow each word.
func wordsOf(size, noise int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 2+rng.IntN(9))
		for j := range words[i] {
			words[i][j] = byte('a' + rng.IntN(26))
		}
	}
	data := make([]byte, 0, size+32)
	for len(data) < size {
		data = append(data, words[int(math.Exp(rng.Float64()*math.Log(float64(len(words)))))-1]...)
		data = append(data, ' ')
		for range rng.IntN(noise + 1) {
			data = append(data, byte(rng.Uint32()))
		}
	}
	return data[:size]
}
