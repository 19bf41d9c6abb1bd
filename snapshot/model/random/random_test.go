package random_test

import (
	"fmt"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/model"
	"github.com/tank-snapshotter/tank/snapshot/model/random"
)

// linkCases are the kinds of hard links to layers below, each of which has to come up.
var linkCases = []model.Case{
	model.LowerLink, model.LinkedGone, model.LinkGone, model.BelowLink, model.MarkerBelow, model.LinkBehind,
	model.LinkOfLink, model.LinkToNothing,
}

// TestImage counts what is in the images: at least a fifth that the model accepts have hard links to lower layers, and
// each kind of these comes up.
func TestImage(t *testing.T) {
	for _, row := range []struct {
		testName string
		options  random.Options
		cases    []model.Case
		links    int // percent of the images, at least
		refused  int // percent, at most
	}{
		{"as they come", random.Options{}, linkCases, 20, 20},
		{"odd", random.Options{Odd: true}, append([]model.Case{
			model.Device, model.NoName, model.MarkerDir, model.MetaMarker, model.OddOwner,
		}, linkCases...), 20, 20},
		{"tame", random.Options{Tame: true}, []model.Case{model.DirOverGone, model.NoXattr}, 0, 1},
	} {
		t.Run(row.testName, func(t *testing.T) {
			const count = 800
			links, refused, seen := 0, 0, map[model.Case]int{}
			for seed := range uint64(count) {
				result, err := model.Apply(random.Image(seed, row.options))
				if err != nil {
					refused++
				} else if result.Seen[model.LowerLink] > 0 {
					links++
				}
				for c := range result.Seen {
					seen[c]++
				}
			}
			t.Logf("%d images, %d refused, %d with links to lower layers, %v", count, refused, links, seen)
			if links*100 < row.links*count || refused*100 > row.refused*count {
				t.Errorf("of %d images %d have links to lower layers, %d are refused", count, links, refused)
			}
			for _, c := range row.cases {
				if seen[c] == 0 {
					t.Errorf("no image has %s", c)
				}
			}
		})
	}
}

// TestSeed shows that a seed stands for its image.
func TestSeed(t *testing.T) {
	for _, o := range []random.Options{{}, {Odd: true}, {Tame: true}} {
		for seed := range uint64(20) {
			if a, b := fmt.Sprint(random.Image(seed, o)), fmt.Sprint(random.Image(seed, o)); a != b {
				t.Fatalf("seed %d: %s\nand\n%s", seed, a, b)
			}
		}
	}
}
