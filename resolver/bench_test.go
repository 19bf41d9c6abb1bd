package resolver

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// BenchmarkFetch downloads a layer of 64 MiB from this machine, which includes hashing and writing
// it. The registry runs in the same process, so CPU-s is the processor time of both.
func BenchmarkFetch(b *testing.B) {
	for _, p := range []struct {
		name     string
		registry func(testing.TB) *registrytest.Registry
	}{
		{"HTTP1", registrytest.New},
		{"HTTP2", func(tb testing.TB) *registrytest.Registry { return registrytest.NewTLS(tb, nil) }},
	} {
		b.Run(p.name, func(b *testing.B) {
			reg := p.registry(b)
			data := random(64 << 20)
			d := reg.Blob(ocispec.MediaTypeImageLayerGzip, data)
			reg.Image("1", amd64, []ocispec.Descriptor{d}, []digest.Digest{d.Digest})
			dir := ""
			if reg.CA != nil {
				dir = registrytest.CertsDir(b, reg.Host,
					map[string][]byte{"ca.crt": reg.CA, "hosts.toml": fmt.Appendf(nil,
						"server = \"https://%s\"\n[host.\"https://%[1]s\"]\nca = \"ca.crt\"\n", reg.Host)})
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				r := newResolver(b, func(o *Options) { o.HostsDir = dir })
				if _, err := pull(b.Context(), r, newStore(b), reg.Host+"/x:1", nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuTime()-before).Seconds()/float64(b.N), "CPU-s/op")
		})
	}
}

// cpuTime returns the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
