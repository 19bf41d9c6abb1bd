package rate

import (
	"testing"
	"time"
)

// TestIsSlow calls IsSlow after each half of a window.
func TestIsSlow(t *testing.T) {
	begin := time.Now()
	for name, tc := range map[string]struct {
		bytes   []int64 // the total after each half of a window; -1: IsSlow is not called then
		longest time.Duration
		slow    []bool
	}{
		"nothing": {[]int64{0, 0, 0, 0}, 2 * Window, []bool{false, true, true, true}},
		"fast": {
			[]int64{1 << 20, 2 << 20, 3 << 20, 4 << 20}, 2 * Window, []bool{false, false, false, false},
		},
		"stalls":         {[]int64{1 << 20, 2 << 20, 2 << 20, 2 << 20}, 2 * Window, []bool{false, false, false, true}},
		"becomes fast":   {[]int64{0, 0, 1 << 20, 2 << 20}, 2 * Window, []bool{false, true, true, false}},
		"at the rate":    {[]int64{0, Slow * 5, 0, Slow * 10}, 2 * Window, []bool{false, false, false, false}},
		"below the rate": {[]int64{0, Slow*5 - 1}, 2 * Window, []bool{false, true}},
		"not called": {
			[]int64{-1, -1, -1, -1, -1, 1 << 20, 1 << 20, 1 << 20}, 2 * Window, []bool{5: false, 6: false, 7: true},
		},
		"a byte sometime": {[]int64{1, 2, 3, 4}, 2 * Window, []bool{false, true, true, true}},
		"a long window": {
			[]int64{-1, -1, -1, -1, -1, 1 << 20, 3 << 20, 4 << 20}, 0, []bool{5: true, 6: true, 7: false},
		},
	} {
		m := NewMeter(begin, Window, tc.longest)
		for i, n := range tc.bytes {
			if n < 0 {
				continue
			}
			if got := m.IsSlow(begin.Add(time.Duration(i+1)*Window/2), n); got != tc.slow[i] {
				t.Errorf("%s: after %d halves of a window: slow is %v", name, i+1, got)
			}
		}
	}
}
