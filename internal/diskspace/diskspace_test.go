package diskspace

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/rate"
	"golang.org/x/sys/unix"
)

func TestSpace(t *testing.T) {
	for path, known := range map[string]bool{t.TempDir(): true, "/proc": false} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		a, aerr := Of(path)
		b, berr := OfFile(f)
		for _, s := range []Space{a, b} {
			if aerr != nil || berr != nil || s.Free <= 0 || s.Total < s.Free || known == (s.Free == math.MaxInt64) {
				t.Errorf("%s: %+v, %v, %v", path, s, aerr, berr)
			}
		}
	}
	for _, st := range []unix.Statfs_t{
		{}, {Blocks: math.MaxUint64, Bsize: 2}, {Blocks: 1, Bavail: math.MaxUint64, Bsize: 1},
		{Blocks: 1 << 62, Bsize: 4096},
	} {
		if s := space(&st); s.Free != math.MaxInt64 || s.Total != math.MaxInt64 {
			t.Errorf("%+v: %+v", st, s)
		}
	}
}

func TestErrorsHaveAClass(t *testing.T) {
	closed, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	var l Ledger
	if err := l.Fits(closed, 1); !errdefs.IsInternal(err) {
		t.Errorf("fits: %v", err)
	}
	if p, err := l.Promise(closed, 1); p != nil || !errdefs.IsInternal(err) {
		t.Errorf("promise: %v", err)
	}
	if err := NewMeter(filepath.Join(t.TempDir(), "missing")).Take(1); !errdefs.IsInternal(err) {
		t.Errorf("take: %v", err)
	}
}

// TestLedger shows what is promised after each step, through what another download can still get.
func TestLedger(t *testing.T) {
	free, now := int64(100), time.Unix(0, 0)
	l := &Ledger{
		Space: func(File) (Space, error) { return Space{free, 100}, nil },
		Now:   func() time.Time { return now },
	}
	p, err := l.Promise(nil, 60)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		after string
		do    func()
		most  int64
	}{
		{"the promise", func() {}, 40},
		{"a half was written", func() { p.Wrote(30); free -= 30 }, 40},
		{"somebody else freed some", func() { free += 10 }, 50},
		{"more was written than promised", func() { p.Wrote(40); free -= 40 }, 40},
		{"it began anew", func() { p.Reset(60); free = 100 }, 40},
		{"it was slow", func() { now = now.Add(rate.Window) }, 100},
		{"it was fast again", func() { p.Wrote(rate.Slow * 10); p.Reset(60); now = now.Add(rate.Window) }, 40},
		{"it ended", func() { p.End(); p.End() }, 100},
		{"the disk is full", func() { free = -1 }, -1},
	} {
		tc.do()
		if err := l.Fits(nil, tc.most+1); !errdefs.IsResourceExhausted(err) {
			t.Errorf("after %s: %d bytes: %v", tc.after, tc.most+1, err)
		}
		if err := l.Fits(nil, tc.most); err != nil {
			t.Errorf("after %s: %d bytes: %v", tc.after, tc.most, err)
		}
	}
	if _, err := l.Promise(nil, math.MaxInt64); !errdefs.IsResourceExhausted(err) || l.Promises() != 0 {
		t.Errorf("%d promises, %v", l.Promises(), err)
	}
	var none *Promise
	none.Wrote(1)
	none.Reset(1)
	none.End()
}

func TestMeter(t *testing.T) {
	m := NewMeter(t.TempDir())
	if err := m.Take(math.MaxInt64 / 2); !errdefs.IsResourceExhausted(err) {
		t.Errorf("take: %v", err)
	}
	if err := m.Take(1); err != nil {
		t.Errorf("take: %v", err)
	}
	if m.left > meterStep {
		t.Errorf("%d bytes may be written before the next look", m.left)
	}
}
