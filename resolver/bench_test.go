package resolver

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// BenchmarkFetch downloads one layer of 256 MiB from this machine, in one piece and in ranges.
func BenchmarkFetch(b *testing.B) {
	reg := registrytest.New(b)
	data := random(256 << 20)
	d := reg.Blob(ocispec.MediaTypeImageLayerGzip, data)
	reg.Image("1", amd64, []ocispec.Descriptor{d}, []digest.Digest{d.Digest})
	for _, ranges := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprint(ranges), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r := client(b, func(o *Options) { o.Ranges = ranges })
				if _, err := pull(b.Context(), r, newStore(b), reg.Host+"/x:1", nil); err != nil {
					b.Fatal(err)
				}
				runtime.GC()
			}
		})
	}
}
