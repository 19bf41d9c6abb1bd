package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"testing"
	"time"

	kpgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

// layers returns the gzip blobs of more than 1 MiB below the directory that TANK_INFLATE_LAYERS names, for example an
// OCI layout, the largest first.
func layers(tb testing.TB) (blobs [][]byte, names []string) {
	dir := os.Getenv("TANK_INFLATE_LAYERS")
	if dir == "" {
		tb.Skip("TANK_INFLATE_LAYERS does not name a directory of layers")
	}
	must(tb, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		blob, err := os.ReadFile(path)
		if err == nil && len(blob) > 1<<20 && bytes.HasPrefix(blob, []byte{0x1f, 0x8b}) {
			blobs = append(blobs, blob)
		}
		return err
	}))
	sort.Slice(blobs, func(i, j int) bool { return len(blobs[i]) > len(blobs[j]) })
	for i, blob := range blobs {
		names = append(names, fmt.Sprintf("layer%d-%dk", i, len(blob)>>10))
	}
	return blobs, names
}

var decodersUnderTest = []struct {
	name string
	run  func(w io.Writer, blob []byte) (int64, error)
}{
	{"std", func(w io.Writer, blob []byte) (int64, error) {
		z, err := stdgzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return 0, err
		}
		return io.CopyBuffer(struct{ io.Writer }{w}, z, make([]byte, 256<<10))
	}},
	{"klauspost", func(w io.Writer, blob []byte) (int64, error) {
		z, err := kpgzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return 0, err
		}
		return z.WriteTo(w)
	}},
	{"inflate", func(w io.Writer, blob []byte) (int64, error) {
		z := inflate.New(bytes.NewReader(blob), nil)
		defer z.Close()
		return z.WriteTo(w)
	}},
}

// TestRatios decodes each layer with each decoder in turn and compares the results. It logs the ratios of CPU time:
// each ratio is taken within one round, and the median of all rounds is printed.
func TestRatios(t *testing.T) {
	blobs, names := layers(t)
	const rounds = 7
	for i, blob := range blobs {
		var sums [3]uint32
		for d := range decodersUnderTest {
			sum := crc32.NewIEEE()
			_, err := decodersUnderTest[d].run(sum, blob)
			must(t, err)
			sums[d] = sum.Sum32()
		}
		if sums[2] != sums[0] || sums[1] != sums[0] {
			t.Errorf("%s: checksums of the output are %x", names[i], sums)
		}
		var seconds [3][rounds]float64
		var size int64
		for round := range rounds {
			for d := range decodersUnderTest {
				begin := cpuTime(t)
				n, err := decodersUnderTest[d].run(io.Discard, blob)
				must(t, err)
				seconds[d][round] = (cpuTime(t) - begin).Seconds()
				size = n
			}
		}
		var byStd, byKlauspost, speed []float64
		for round := range rounds {
			byStd = append(byStd, seconds[0][round]/seconds[2][round])
			byKlauspost = append(byKlauspost, seconds[1][round]/seconds[2][round])
			speed = append(speed, float64(size)/1e6/seconds[2][round])
		}
		t.Logf("%s: %d MB of output, %.0f MB/s, %.2f times klauspost, %.2f times compress/gzip", names[i], size>>20,
			median(speed), median(byKlauspost), median(byStd))
	}
}

func median(v []float64) float64 {
	sort.Float64s(v)
	return v[len(v)/2]
}

// BenchmarkLayers measures the speed on real layers, in bytes of output.
func BenchmarkLayers(b *testing.B) {
	blobs, names := layers(b)
	for i, blob := range blobs {
		for _, d := range decodersUnderTest {
			b.Run(names[i]+"/"+d.name, func(b *testing.B) {
				for b.Loop() {
					n, err := d.run(io.Discard, blob)
					must(b, err)
					b.SetBytes(n)
				}
			})
		}
	}
}

// cpuTime returns the CPU time that the process has used.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var used unix.Rusage
	must(tb, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
