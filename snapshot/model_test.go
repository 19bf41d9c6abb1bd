package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/model"
	"github.com/tank-snapshotter/tank/snapshot/model/random"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestModelRows checks the model against the tables.
func TestModelRows(t *testing.T) {
	for _, row := range slices.Concat(stackRows, breakoutRows, hostileRows, entryRows, linkRows, loopRows) {
		t.Run(row.testName, func(t *testing.T) {
			got, err := model.Apply(row.layers)
			if errors.Is(err, model.ErrInvalid) {
				err = errdefs.ErrFailedPrecondition
			}
			compare(t, got.Lines, err, row.want, row.wantErr)
		})
	}
}

// ways are all ways of merging layers.
var ways = []string{"mounted sequential", "mounted parallel", "copied", "moved", "prepared"}

// outcome is the result of one way: a tree, a refusal of the layers, or another error.
type outcome struct {
	lines   []string
	refused bool
	err     error // any error that is not a refusal
}

func (o outcome) String() string {
	switch {
	case o.err != nil:
		return "error: " + o.err.Error()
	case o.refused:
		return "refused"
	}
	return strings.Join(o.lines, "\n")
}

// workshop merges many lists of layers, one after the other. It has one root for each kind of
// merge.
type workshop struct {
	kept, moved, directory *world
	n                      int
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	return &workshop{kept: openAt(t, memoryDir(t), memory{}), moved: openAt(t, memoryDir(t), memory{}),
		directory: openDirectory(t, memoryDir(t), memory{})}
}

// memoryDir returns a temporary directory on tmpfs if the machine has /dev/shm.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tank-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func (s *workshop) run(t *testing.T, way string, lists [][]Item) outcome {
	t.Helper()
	s.n++
	name := fmt.Sprintf("%s %d", t.Name(), s.n)
	w := s.kept
	switch way {
	case "moved":
		w = s.moved
	case "prepared":
		w = s.directory
	}
	layers := make([]layer.Pair, len(lists))
	for i, items := range lists {
		layers[i] = w.blobs.add(t, Tar(t, items...))
	}
	var lines []string
	var err error
	switch way {
	case "copied", "moved":
		lines, err = assembledAs(t, w, layers, way == "moved", name)
	case "prepared":
		lines, err = prepared(t, w, layers, name)
	default:
		lines, err = mountedAs(t, w, layers, way == "mounted parallel", name)
	}
	switch {
	case errdefs.IsFailedPrecondition(err):
		return outcome{refused: true, err: nil}
	case err != nil:
		return outcome{err: err}
	}
	return outcome{lines: lines}
}

// assembledAs is like assembled but releases everything afterwards.
func assembledAs(t *testing.T, w *world, layers []layer.Pair, consume bool, name string) ([]string, error) {
	t.Helper()
	h := metadata.Holder(name)
	defer func() {
		must(t, w.db.Update(func(tx *metadata.Tx) error { return tx.ReleaseAll(h) }))
		_, err := w.Sweep(ctx)
		must(t, err)
	}()
	var recs []metadata.Layer
	for _, l := range layers {
		rec, err := w.Layers().Unpack(ctx, h, l)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	path, err := w.Layers().Assemble(ctx, h, layers[0].DiffID, recs,
		&layer.AssembleOptions{Consume: consume, NoSync: true})
	if err != nil {
		return nil, err
	}
	return List(t, path), nil
}

func mountedAs(t *testing.T, w *world, layers []layer.Pair, parallel bool, name string) ([]string, error) {
	t.Helper()
	sn := w.For(metadata.Holder(name))
	top, err := extract(ctx, sn, w, layers, parallel, name)
	defer func() { must(t, release(w, metadata.Holder(name))) }()
	if err != nil {
		return nil, err
	}
	mounts, err := sn.View(ctx, "view "+name, top)
	if err != nil {
		return nil, err
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		return nil, err
	}
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	return List(t, dir), nil
}

// check compares all ways with the model and returns the first difference.
func (s *workshop) check(t *testing.T, lists [][]Item) string {
	t.Helper()
	result, err := model.Apply(lists)
	want := outcome{lines: result.Lines, refused: err != nil}
	for _, way := range ways {
		got := s.run(t, way, lists)
		want.lines = result.Lines
		if way != "copied" && way != "moved" {
			want.lines = underContainerd(result.Lines)
		}
		if got.err != nil || got.refused != want.refused || !slices.Equal(got.lines, want.lines) {
			note := ""
			if err != nil {
				note = " (" + err.Error() + ")"
			}
			return fmt.Sprintf("%s:\n%s\nthe model%s:\n%s\n", way, got, note, want)
		}
	}
	return ""
}

// minimise drops layers and items for as long as check still finds a difference.
func (s *workshop) minimise(t *testing.T, lists [][]Item) [][]Item {
	t.Helper()
	fails := func(l [][]Item) bool { return s.check(t, l) != "" }
	for again := true; again; {
		again = false
		for i := 0; i < len(lists) && len(lists) > 1; i++ {
			if less := slices.Delete(slices.Clone(lists), i, i+1); fails(less) {
				lists, again = less, true
				i--
			}
		}
		for i := range lists {
			for j := 0; j < len(lists[i]); j++ {
				less := slices.Clone(lists)
				if less[i] = slices.Delete(slices.Clone(lists[i]), j, j+1); fails(less) {
					lists, again = less, true
					j--
				}
			}
		}
		again = s.simplify(lists, fails) || again
	}
	return lists
}

// simplify resets the attributes of items to defaults where check still finds a difference.
func (s *workshop) simplify(lists [][]Item, fails func([][]Item) bool) (changed bool) {
	for i := range lists {
		for j := range lists[i] {
			usual := plain(lists[i][j])
			if usual.String() == lists[i][j].String() {
				continue
			}
			less := slices.Clone(lists)
			less[i] = slices.Clone(lists[i])
			less[i][j] = usual
			if fails(less) {
				lists[i] = less[i]
				changed = true
			}
		}
	}
	return changed
}

// tally counts lists of layers and, for each case, the lists in which it occurred.
type tally struct {
	lists, refused int
	cases          map[model.Case]int
}

func (c *tally) add(lists [][]Item) {
	result, err := model.Apply(lists)
	c.lists++
	if err != nil {
		c.refused++
		result.Seen = map[model.Case]int{model.LinkToNothing: result.Seen[model.LinkToNothing]}
	}
	for k, n := range result.Seen {
		c.cases[k] += min(n, 1)
	}
}

// TestModel compares random lists of layers with the model. It minimises a list with a difference
// and prints it as a row of a table, with its seed N. TANK_MODEL_SEEDS=N,1 repeats the seed.
func TestModel(t *testing.T) {
	requireMounts(t)
	s := newWorkshop(t)
	c := tally{cases: map[model.Case]int{}}
	end := time.Now().Add(modelTime())
	first, count := modelSeeds()
	for seed := first; seed < first+count && time.Now().Before(end); seed++ {
		lists := random.Image(seed, random.Options{Odd: seed%4 == 1})
		c.add(lists)
		if s.check(t, lists) == "" {
			continue
		}
		lists = s.minimise(t, lists)
		t.Errorf("seed %d:\n%s%s", seed, program(lists), s.check(t, lists))
	}
	t.Logf("%d lists, %d refused, %d with links to lower layers; %v", c.lists, c.refused, c.cases[model.LowerLink],
		c.cases)
}

// release removes all snapshots of a holder, leaves first.
func release(w *world, h metadata.Holder) error {
	sn := w.For(h)
	for range 100 {
		left, err := names(sn)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, n := range left {
			if err := sn.Remove(context.Background(), n); err != nil && !errdefs.IsFailedPrecondition(err) {
				return err
			}
		}
	}
	return errors.New("the holder still has snapshots")
}
