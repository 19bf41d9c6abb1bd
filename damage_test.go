package tank_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/internal/damagetest"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// damageRoot is a root that has everything that can be damaged: blobs, layers, an ordered layer with files set aside,
// fix-ups and root file systems.
type damageRoot struct {
	*root
	ref string
	tk  *tank.Tank
	was map[metadata.Node][]string // what each target was before it was damaged
}

func newDamageRoot(t *testing.T, daemon bool) *damageRoot {
	t.Helper()
	reg := registrytest.New(t)
	lower := []Item{
		D("d").Mode(0o750), F("d/a", strings.Repeat("a", 5000)), F("b", "2"), H("c", "b"), S("s", "b"), D("e"),
		D("e/f"),
		F("e/f/x", "x"), F("big", strings.Repeat("0123456789", 20000)),
	}
	upper := []Item{F("d/n", "3"), W("d/.wh.a"), F("implied/dir/file", "4"), H("link", "b"), F("e/f/y", "y")}
	third := []Item{F("imp/a", "first, set aside"), F("imp/a", "second"), H("low", "b"), W(".wh.s")}
	push(t, reg, "1", lower, upper, third)
	push(t, reg, "2", lower)
	r := &damageRoot{root: newRoot(t, daemon), ref: reg.Host + "/x:1"}
	for _, ref := range []string{r.ref, reg.Host + "/x:2"} {
		_, err := r.pull(t, ref, nil)
		must(t, err)
	}
	r.open(t)
	if daemon {
		r.containers(t)
	}
	t.Cleanup(func() {
		if r.tk != nil {
			must(t, r.tk.Close())
		}
	})
	return r
}

func (r *damageRoot) open(t *testing.T) {
	t.Helper()
	if r.tk != nil {
		must(t, r.tk.Close())
	}
	var err error
	r.tk, err = tank.Open(r.dir, &tank.Options{Daemon: r.daemon})
	must(t, err)
}

// containers extracts the image for a containerd and prepares a container on it, which makes the fix-ups.
func (r *damageRoot) containers(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	d, err := r.tk.Inspect(ctx, r.ref)
	must(t, err)
	p := d.Platforms[0]
	sn := r.tk.Snapshots().For(metadata.Containerd)
	parent := ""
	for i, chain := range identity.ChainIDs(p.DiffIDs) {
		key, name := fmt.Sprintf("ns/%d/extract", i), "ns/"+chain.String()
		mounts, err := sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: chain.String(), snapshots.LabelSnapshotDiffID: p.DiffIDs[i].String(),
		}))
		must(t, err)
		_, err = r.tk.Snapshots().Apply(ctx, p.Layers[i], mounts)
		must(t, err)
		must(t, sn.Commit(ctx, name, key))
		parent = name
	}
	_, err = sn.Prepare(ctx, "ns/container", parent)
	must(t, err)
	_, err = sn.View(ctx, "ns/view", parent)
	must(t, err)
}

// targets lists what can be damaged.
func (r *damageRoot) targets(t *testing.T) []damagetest.Target {
	t.Helper()
	targets, err := damagetest.Targets(r.tk, tank.Nodes(r.tk))
	must(t, err)
	return targets
}

// states lists what each target is.
func states(t *testing.T, targets []damagetest.Target) map[metadata.Node][]string {
	t.Helper()
	all := map[metadata.Node][]string{}
	for _, target := range targets {
		if target.Node.Kind == metadata.KindBlob {
			b, err := os.ReadFile(target.Path)
			must(t, err)
			all[target.Node] = []string{string(b)}
			continue
		}
		all[target.Node] = List(t, target.Path)
		if _, err := os.Lstat(filepath.Join(target.Aux, "aside")); target.Aux != "" && err == nil {
			aside := slices.DeleteFunc(List(t, filepath.Join(target.Aux, "aside")), func(line string) bool {
				return strings.HasPrefix(line, ". ") // the directory itself, whose time is not sealed
			})
			all[target.Node] = append(all[target.Node], aside...)
		}
	}
	return all
}

// faults runs a check and returns the things that it reports, each once.
func (r *damageRoot) faults(t *testing.T) (found []metadata.Node) {
	t.Helper()
	must(t, r.tk.Check(context.Background(), func(f tank.Fault) {
		n := metadata.Node{Kind: metadata.Kind(f.What), Key: f.Name}
		if f.Advice == "" || f.Damage == "" {
			t.Errorf("a fault without advice: %+v", f)
		}
		if !slices.Contains(found, n) {
			found = append(found, n)
		}
	}))
	return found
}

// repaired repairs the root and shows that it is what it was.
func (r *damageRoot) repaired(t *testing.T, damaged []metadata.Node) {
	t.Helper()
	for _, n := range damaged {
		if !slices.Contains(r.faults(t), n) {
			t.Errorf("not found: %s %s", n.Kind, n.Key)
		}
	}
	res, err := r.tk.Repair(context.Background(), nil)
	must(t, err)
	for _, f := range res.Remains {
		t.Errorf("remains: %s: %s", f.Message, f.Reason)
	}
	if left := r.faults(t); len(left) > 0 {
		t.Errorf("faults after the repair: %v", left)
	}
	now := states(t, r.targets(t))
	for n, was := range r.was {
		if !slices.Equal(now[n], was) {
			t.Errorf("%s %s:\n%.300q\ninstead of\n%.300q", n.Kind, n.Key, now[n], was)
		}
	}
}

// TestRepairTable inflicts each kind of damage on each kind of target. A check finds it, and a repair mends it.
func TestRepairTable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to change owners and what belongs to others")
	}
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			r := newDamageRoot(t, daemon)
			r.was = states(t, r.targets(t))
			tried := map[string]bool{}
			for _, node := range sortedNodes(r.was) {
				for _, kind := range damagetest.Kinds {
					target := find(r.targets(t), node)
					row := target.Name() + ": " + kind.Name
					if tried[row] {
						continue
					}
					path, ok, err := kind.Apply(rand.New(rand.NewPCG(1, uint64(len(tried)))), target)
					must(t, err)
					if !ok {
						continue
					}
					tried[row] = true
					r.repaired(t, []metadata.Node{node})
					if t.Failed() {
						t.Fatalf("%s: %s", row, path)
					}
				}
			}
			want := []string{"blob: the blob removed", "layer: a file removed", "fix-up: a file removed",
				"rootfs: a directory removed", "ordered layer: the order removed",
				"ordered layer: a bit of a file set aside flipped"}
			if !daemon { // its layers were consumed
				want = []string{"blob: the blob removed", "rootfs: a directory removed"}
			}
			for _, row := range want {
				if !tried[row] {
					t.Errorf("not tried: %s", row)
				}
			}
			t.Logf("%d rows", len(tried))
		})
	}
}

func find(targets []damagetest.Target, n metadata.Node) damagetest.Target {
	i := slices.IndexFunc(targets, func(t damagetest.Target) bool { return t.Node == n })
	return targets[i]
}

func sortedNodes(m map[metadata.Node][]string) (nodes []metadata.Node) {
	for n := range m {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b metadata.Node) int {
		return strings.Compare(string(a.Kind)+a.Key, string(b.Kind)+b.Key)
	})
	return nodes
}

// TestDamage inflicts random damage on up to three things at once. TANK_DAMAGE=FIRST,COUNT chooses the seeds.
func TestDamage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to change owners and what belongs to others")
	}
	first, count := 1, 20
	if s := os.Getenv("TANK_DAMAGE"); s != "" {
		if _, err := fmt.Sscanf(s, "%d,%d", &first, &count); err != nil {
			t.Fatalf("TANK_DAMAGE=%s: %v", s, err)
		}
	}
	inflicted := 0
	roots := map[bool]*damageRoot{false: newDamageRoot(t, false), true: newDamageRoot(t, true)}
	for _, r := range roots {
		r.was = states(t, r.targets(t))
	}
	for seed := first; seed < first+count; seed++ {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		root := roots[r.IntN(2) == 0]
		nodes := sortedNodes(root.was)
		var damaged []metadata.Node
		var rows []string
		for _, i := range r.Perm(len(nodes))[:1+r.IntN(3)] {
			target := find(root.targets(t), nodes[i])
			kind, path, err := damagetest.Inflict(r, target)
			must(t, err)
			damaged = append(damaged, nodes[i])
			rows = append(rows, fmt.Sprintf("%s: %s: %s", target.Name(), kind.Name, path))
		}
		if r.IntN(4) == 0 {
			root.open(t)
		}
		root.repaired(t, damaged)
		inflicted += len(damaged)
		if t.Failed() {
			t.Fatalf("seed %d (TANK_DAMAGE=%d,1):\n%s", seed, seed, strings.Join(rows, "\n"))
		}
	}
	t.Logf("%d faults from %d seeds: all found, all mended", inflicted, count)
}
