package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
)

// snapshotCall is one call of the snapshot service.
type snapshotCall struct {
	Op     string
	Key    string
	Parent string // of Prepare, View and Commit
	Name   string // of Commit
	Label  string // of Prepare, View, Commit and Update: the value of the label "l"
}

// snapshotResult is what a call returned.
type snapshotResult struct {
	Err  string
	Text string // the mounts, the info, or the list of Walk
}

// modelSnapshot is one snapshot of the model.
type modelSnapshot struct {
	name, kind, parent, label string
	mounts                    string // that Prepare or View returned; "?" if its result is unknown
}

func (s modelSnapshot) info() string {
	return fmt.Sprintf("%s %s %q %q", s.name, s.kind, s.parent, s.label)
}

// snapshotState is the state of the model: lines of snapshots, sorted by name, so that states can be compared.
type snapshotState string

func (s snapshotState) snapshots() []modelSnapshot {
	var all []modelSnapshot
	for line := range strings.Lines(string(s)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		all = append(all, modelSnapshot{f[0], f[1], f[2], f[3], f[4]})
	}
	return all
}

func snapshotStateOf(all []modelSnapshot) snapshotState {
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	var b strings.Builder
	for _, s := range all {
		b.WriteString(strings.Join([]string{s.name, s.kind, s.parent, s.label, s.mounts}, "\t") + "\n")
	}
	return snapshotState(b.String())
}

// nextSnapshots is the model of containerd's snapshotters (core/snapshots/storage). If several errors apply, it accepts
// each of them.
func nextSnapshots(state snapshotState, c snapshotCall, r *snapshotResult) []snapshotState {
	all := state.snapshots()
	find := func(name string) int {
		return slices.IndexFunc(all, func(s modelSnapshot) bool { return s.name == name })
	}
	i := find(c.Key)
	var errs []string
	text, next := "", state
	without := func() []modelSnapshot { return slices.Delete(slices.Clone(all), i, i+1) }
	if i < 0 && c.Op != "prepare" && c.Op != "view" && c.Op != "walk" {
		errs = append(errs, "not found")
	}
	switch p := find(c.Parent); c.Op {
	case "prepare", "view":
		if i >= 0 {
			errs = append(errs, "exists")
		}
		if c.Parent != "" && p < 0 {
			errs = append(errs, "not found")
		}
		if p >= 0 && all[p].kind != "Committed" {
			errs = append(errs, "invalid")
		}
		if len(errs) > 0 {
			break
		}
		s := modelSnapshot{c.Key, map[string]string{"prepare": "Active", "view": "View"}[c.Op], c.Parent, c.Label, "?"}
		if r != nil {
			s.mounts, text = r.Text, r.Text
		}
		next = snapshotStateOf(append(slices.Clone(all), s))
	case "commit":
		if find(c.Name) >= 0 {
			errs = append(errs, "exists")
		}
		if i >= 0 && all[i].kind != "Active" {
			errs = append(errs, "failed precondition")
		}
		if i >= 0 && c.Parent != "" && c.Parent != all[i].parent {
			switch {
			case all[i].parent != "":
				errs = append(errs, "invalid")
			case p < 0:
				errs = append(errs, "not found")
			case all[p].kind != "Committed":
				errs = append(errs, "failed precondition")
			}
		}
		if len(errs) > 0 {
			break
		}
		s := modelSnapshot{c.Name, "Committed", all[i].parent, c.Label, ""}
		if c.Parent != "" {
			s.parent = c.Parent
		}
		next = snapshotStateOf(append(without(), s))
	case "remove":
		if slices.ContainsFunc(all, func(s modelSnapshot) bool { return s.parent == c.Key }) {
			errs = append(errs, "failed precondition")
		}
		if len(errs) == 0 {
			next = snapshotStateOf(without())
		}
	case "update":
		if i >= 0 {
			changed := slices.Clone(all)
			changed[i].label = c.Label
			next, text = snapshotStateOf(changed), changed[i].info()
		}
	case "stat":
		if i >= 0 {
			text = all[i].info()
		}
	case "mounts":
		switch {
		case i < 0:
		case all[i].kind == "Committed":
			errs = append(errs, "failed precondition")
		case all[i].mounts == "?" && r != nil:
			text = r.Text
		default:
			text = all[i].mounts
		}
	case "walk":
		for _, s := range all {
			text += s.info() + "\n"
		}
	}
	switch {
	case r == nil && len(errs) == 0:
		return []snapshotState{state, next}
	case r == nil:
		return []snapshotState{state}
	case len(errs) > 0 && slices.Contains(errs, r.Err), len(errs) == 0 && r.Err == "" && r.Text == text:
		return []snapshotState{next}
	}
	return nil
}

var snapshotModel = linearModel[snapshotState, snapshotCall, snapshotResult]{
	next: nextSnapshots,
	observes: func(c snapshotCall, r *snapshotResult) bool {
		return r != nil && (r.Err != "" || slices.Contains([]string{"stat", "mounts", "usage", "walk"}, c.Op))
	},
	describe: func(c snapshotCall, r *snapshotResult) string {
		if r == nil {
			return fmt.Sprintf("%+v", c)
		}
		return fmt.Sprintf("%+v: %s %s", c, r.Err, r.Text)
	},
}

// nextSnapshotCall makes a call at random. Few names make many conflicts.
func nextSnapshotCall(r *rand.Rand, client int, _ *snapshotResult) snapshotCall {
	active := func() string { return fmt.Sprintf("a%d", r.IntN(5)) }
	committed := func() string { return fmt.Sprintf("c%d", r.IntN(4)) }
	parent := func() string {
		switch n := r.IntN(10); {
		case n < 4:
			return ""
		case n == 9:
			return active()
		}
		return committed()
	}
	either := func() string {
		if r.IntN(2) == 0 {
			return active()
		}
		return committed()
	}
	c := snapshotCall{Label: fmt.Sprintf("%d-%d", client, r.IntN(1000))}
	switch n := r.IntN(100); {
	case n < 28:
		c.Op, c.Key, c.Parent = "prepare", active(), parent()
	case n < 34:
		c.Op, c.Key = "view", active() // without a parent: ADR 46 says what is open about views
	case n < 54:
		c.Op, c.Key, c.Name = "commit", active(), committed()
		if r.IntN(5) == 0 {
			c.Parent = parent()
		}
		if c.Parent == c.Name { // containerd would make a snapshot its own parent
			c.Parent = ""
		}
	case n < 72:
		c.Op, c.Key = "remove", either()
	case n < 80:
		c.Op, c.Key = "stat", either()
	case n < 87:
		c.Op, c.Key = "update", either()
	case n < 92:
		c.Op, c.Key = "mounts", either()
	case n < 96:
		c.Op, c.Key = "usage", either()
	default:
		c.Op = "walk"
	}
	return c
}

// snapshotHistories returns a function that runs and checks the history of a seed.
func snapshotHistories(t *testing.T, k *TankRoot) func(seed uint64) bool {
	var clients []linearClient[snapshotCall, snapshotResult]
	for range linearClients {
		sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(k.dial(t)), "tank")
		clients = append(clients, func(c snapshotCall) (snapshotResult, error) {
			text, err := callSnapshots(sn, c)
			class, err := errorClass(err)
			return snapshotResult{class, text}, err
		})
	}
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(k.dial(t)), "tank")
	return func(seed uint64) bool {
		history, err := runHistory(seed, clients, nextSnapshotCall)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		ok := checkHistory(
			t,
			fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), seed),
			snapshotModel,
			history,
		)
		removeSnapshots(t, sn)
		return ok && err == nil
	}
}

// callSnapshots makes a call and returns its result as text.
func callSnapshots(sn snapshots.Snapshotter, c snapshotCall) (string, error) {
	ctx := context.Background()
	labels := snapshots.WithLabels(map[string]string{"l": c.Label})
	switch c.Op {
	case "prepare":
		m, err := sn.Prepare(ctx, c.Key, c.Parent, labels)
		return mountText(m, err)
	case "view":
		m, err := sn.View(ctx, c.Key, c.Parent, labels)
		return mountText(m, err)
	case "mounts":
		m, err := sn.Mounts(ctx, c.Key)
		return mountText(m, err)
	case "commit":
		return "", sn.Commit(ctx, c.Name, c.Key, labels, snapshots.WithParent(c.Parent))
	case "remove":
		return "", sn.Remove(ctx, c.Key)
	case "stat":
		i, err := sn.Stat(ctx, c.Key)
		return infoText(i, err)
	case "update":
		i, err := sn.Update(ctx, snapshots.Info{Name: c.Key, Labels: map[string]string{"l": c.Label}}, "labels.l")
		return infoText(i, err)
	case "usage":
		_, err := sn.Usage(ctx, c.Key)
		return "", err
	}
	var lines []string
	err := sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		line, err := infoText(i, nil)
		lines = append(lines, line+"\n")
		return err
	})
	slices.Sort(lines)
	return strings.Join(lines, ""), err
}

func mountText(ms []mount.Mount, err error) (string, error) { return fmt.Sprint(ms), err }

func infoText(i snapshots.Info, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return modelSnapshot{name: i.Name, kind: i.Kind.String(), parent: i.Parent, label: i.Labels["l"]}.info(), nil
}

// removeSnapshots removes all snapshots, children first.
func removeSnapshots(t *testing.T, sn snapshots.Snapshotter) {
	t.Helper()
	for left := -1; left != 0; {
		var names []string
		err := sn.Walk(context.Background(), func(_ context.Context, i snapshots.Info) error {
			names = append(names, i.Name)
			return nil
		})
		if err != nil || len(names) == left {
			t.Fatalf("%d snapshots cannot be removed: %v", left, err)
		}
		left = len(names)
		for _, name := range names {
			_ = sn.Remove(context.Background(), name) // fails while it has children
		}
	}
}
