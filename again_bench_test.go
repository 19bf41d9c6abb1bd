package tank_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank"
)

// BenchmarkAgain pulls an unchanged image of three layers that the root already has: Open, Pull and
// Close. Only the start of a process is missing.
func BenchmarkAgain(b *testing.B) {
	reg, _ := benchImage(b, 50, 100, 150)
	root := filepath.Join(b.TempDir(), "root")
	pull := func(o tank.PullOptions) {
		tk, err := tank.Open(root, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err = tk.Pull(context.Background(), reg.Host+"/x:1", &o); err != nil {
			b.Fatal(err)
		}
		if err := tk.Close(); err != nil {
			b.Fatal(err)
		}
	}
	pull(tank.PullOptions{})
	for name, row := range map[string]struct {
		opts     tank.PullOptions
		requests int
	}{"unchanged": {tank.PullOptions{}, 1}, "offline": {tank.PullOptions{Offline: true}, 0}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var took []time.Duration
			before := len(reg.Requests())
			for b.Loop() {
				begin := time.Now()
				pull(row.opts)
				took = append(took, time.Since(begin))
			}
			if got := len(reg.Requests()) - before; got != row.requests*len(took) {
				b.Errorf("%d requests for %d pulls: %q", got, len(took),
					reg.Requests()[before:min(before+3, len(reg.Requests()))])
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
		})
	}
}
