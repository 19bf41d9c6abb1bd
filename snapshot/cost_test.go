package snapshot_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestCost assembles two layers in which every entry of the upper layer concerns many entries of the lower one (B9). It
// fails if the time grows faster than in proportion to the number of entries.
func TestCost(t *testing.T) {
	requireRoot(t)
	const n = 4000
	for _, row := range []struct {
		testName string
		lower    func(i int) []Item
		upper    func(i int) []Item
	}{
		{"hard links to lower files that have other hard links",
			func(i int) []Item { return []Item{F(at("a", i), "1"), H(at("b", i), at("a", i))} },
			func(i int) []Item { return []Item{H(at("c", i), at("a", i))} }},
		{"opaque markers through symlinks to one directory",
			func(i int) []Item { return []Item{D("t"), S(at("s", i), "t")} },
			func(i int) []Item { return []Item{F(at("t/x", i), "1"), W(at("s", i) + "/.wh..wh..opq")} }},
		{"hard links to one file through a symlink", func(int) []Item { return []Item{D("t"), S("s", "t")} },
			func(i int) []Item { return []Item{F("s/x", "1"), H(at("s/y", i), "s/x"), H(at("z", i), "s/x")} }},
		{"whiteouts through symlinks",
			func(i int) []Item { return []Item{D("t"), F(at("t/x", i), "1"), S(at("s", i), "t")} },
			func(i int) []Item { return []Item{W(at("s", i) + "/.wh.x" + fmt.Sprint(i))} }},
		{"hard links to lower files that are removed later", func(i int) []Item { return []Item{F(at("d/a", i), "1")} },
			func(i int) []Item { return []Item{H(at("d/b", i), at("d/a", i)), W(at("d/.wh.a", i))} }},
		{"files through symlinks that are replaced later",
			func(i int) []Item { return []Item{D("t"), S(at("s", i), "t")} },
			func(i int) []Item { return []Item{F(at("s", i)+"/x", "1"), D(at("s", i)), F(at("s", i)+"/x", "2")} }},
	} {
		t.Run(row.testName, func(t *testing.T) {
			took := func(n int) time.Duration {
				w := openAt(t, memoryDir(t), memory{})
				var lower, upper []Item
				for i := range n {
					lower, upper = append(lower, row.lower(i)...), append(upper, row.upper(i)...)
				}
				var recs []metadata.Layer
				for _, items := range [][]Item{lower, upper} {
					rec, err := w.Layers().Unpack(ctx, holder, w.blobs.add(t, Tar(t, items...)))
					must(t, err)
					recs = append(recs, rec)
				}
				start := time.Now()
				_, err := w.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, nil)
				must(t, err)
				return time.Since(start)
			}
			small, large := took(n/8), took(n)
			t.Logf("%d: %v, %d: %v", n/8, small, n, large)
			if large > 24*small && large > 5*time.Second {
				t.Errorf("8 times the entries took %v, want about %v", large, 8*small)
			}
		})
	}
}

// TestDepthCost assembles layers of nested directories. It fails if the time grows faster than in proportion to the
// depth.
func TestDepthCost(t *testing.T) {
	requireRoot(t)
	const depth = 1200
	deep := func(n int) string { return strings.Repeat("d/", n-1) + "d" }
	many := func(n int, item func(i int) Item) (items []Item) {
		for i := range n {
			items = append(items, item(i))
		}
		return items
	}
	for _, row := range []struct {
		testName     string
		lower, upper func(n int) []Item
	}{
		{"implied directories", func(n int) []Item { return []Item{D(deep(n))} },
			func(n int) []Item { return []Item{F(deep(n)+"/h", "1")} }},
		{"whiteouts in implied directories", func(n int) []Item { return []Item{F("a", "1")} }, func(n int) []Item {
			return append(many(n, func(i int) Item { return W(deep(n) + at("/.wh.x", i)) }), F(deep(n)+"/h", "1"))
		}},
		{"hard links to a deep file", func(n int) []Item { return []Item{F(deep(n)+"/f", "1")} },
			func(n int) []Item { return many(n, func(i int) Item { return H(at("l", i), deep(n)+"/f") }) }},
		{"opaque markers through symlinks to each depth", func(n int) []Item {
			return append(many(n, func(i int) Item { return S(at("s", i), deep(i+1)) }), D(deep(n)))
		}, func(n int) []Item {
			return append([]Item{F(deep(n)+"/f", "1")},
				many(n, func(i int) Item { return W(at("s", i) + "/.wh..wh..opq") })...)
		}},
		{"a chain of symlinks", func(n int) []Item {
			return append(many(n, func(i int) Item { return S(at("s", i), at("s", i+1)) }), D(at("s", n)))
		}, func(n int) []Item { return many(n, func(i int) Item { return F(at("s", i)+"/x", "1") }) }},
		{"hard links through a symlink with a long target", func(n int) []Item {
			return []Item{F("t/f", "1"), S("s", strings.Repeat("t/../", min(n, 800))+"t")}
		}, func(n int) []Item { return many(n, func(i int) Item { return H(at("l", i), "s/f") }) }},
	} {
		t.Run(row.testName, func(t *testing.T) {
			took := func(n int) time.Duration {
				w := openAt(t, memoryDir(t), memory{})
				var recs []metadata.Layer
				for _, items := range [][]Item{row.lower(n), row.upper(n)} {
					rec, err := w.Layers().Unpack(ctx, holder, w.blobs.add(t, Tar(t, items...)))
					must(t, err)
					recs = append(recs, rec)
				}
				start := time.Now()
				_, err := w.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, nil)
				must(t, err)
				return time.Since(start)
			}
			small, large := took(depth/8), took(depth)
			t.Logf("%d: %v, %d: %v", depth/8, small, depth, large)
			if large > 24*small && large > 5*time.Second {
				t.Errorf("8 times the depth took %v, want about %v", large, 8*small)
			}
		})
	}
}

func at(name string, i int) string { return fmt.Sprintf("%s%d", name, i) }
