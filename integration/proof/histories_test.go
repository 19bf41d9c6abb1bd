package proof

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// opLimit is how long one operation may take.
const opLimit = 60 * time.Second

// operations are the operations of histories, in the order of their digits in the number of a history.
var operations = []string{"pull", "unpack", "commit", "prepare", "remove", "gc", "tag", "repair"}

// histories lists all histories of one and of two operations, and a third of those of three, the same third in every
// run.
var histories = func() (all [][]string) {
	for _, a := range operations {
		all = append(all, []string{a})
	}
	for _, a := range operations {
		for _, b := range operations {
			all = append(all, []string{a, b})
		}
	}
	var three [][]string
	for _, a := range operations {
		for _, b := range operations {
			for _, c := range operations {
				three = append(three, []string{a, b, c})
			}
		}
	}
	rand.New(rand.NewPCG(13, 45)).Shuffle(len(three), func(i, j int) { three[i], three[j] = three[j], three[i] })
	return append(all, three[:(len(three)+2)/3]...)
}()

// do runs the operation number i of a history. Each can be repeated after a cut.
func (n *node) do(w *world, op string, i int, all []*image) error {
	base, next := all[0], all[1+i]
	name := n.r.Ref(next.name)
	switch op {
	case "pull":
		return n.pull(w, name, next)
	case "unpack":
		return n.unpack(w, name, next)
	case "commit":
		if i%2 == 1 {
			base = nil
		}
		return n.commit(w, fmt.Sprintf("c%d", i), fmt.Sprintf("k%d", i), base)
	case "prepare":
		return n.prepare(w, fmt.Sprintf("p%d", i), base)
	case "remove":
		return n.removeNewest(w)
	case "gc":
		return n.collect()
	case "tag":
		if err := n.pull(w, n.r.Ref(fmt.Sprintf("proof/second%d:1", i)), base); err != nil {
			return err
		}
		return n.tag(w, n.r.Ref(base.name), fmt.Sprintf("second-%d", i))
	case "repair":
		if err := n.damage(); err != nil {
			return err
		}
		return n.repair()
	}
	return fmt.Errorf("no operation is called %s", op)
}

// damage changes a file of the layer that only the base image has.
func (n *node) damage() error {
	names, err := filepath.Glob(filepath.Join(n.k.Root, "layers", "*", "fs", "etc", "own0"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.WriteFile(name, []byte("damaged"), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// repair mends what is damaged from what is here.
func (n *node) repair() error {
	code, out := n.command("check", "--repair", "--offline", "--progress", "none")
	if code != 0 {
		return fmt.Errorf("check --repair: exit %d: %s", code, out)
	}
	return nil
}

// removeNewest removes one image through each door, and one snapshot: those that the history made, or else the ones of
// before.
func (n *node) removeNewest(w *world) error {
	was := w.copyOf()
	newest := func(names []string, old string) string {
		names = slices.DeleteFunc(names, func(s string) bool { return s == old })
		if len(names) == 0 {
			return old
		}
		return slices.Max(names)
	}
	base := n.r.Ref(n.baseName)
	if err := n.forget(w, newest(keys(was.cli), base)); err != nil {
		return err
	}
	if err := n.remove(w, newest(keys(was.snaps), "before")); err != nil {
		return err
	}
	if name := newest(keys(was.images), base); name != base { // later operations use the base
		return n.untag(w, name)
	}
	return nil
}

func keys[V any](m map[string]V) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	return names
}

// historyLab runs histories on copies of one disk.
type historyLab struct {
	t      *testing.T
	n      *node
	d      *disk
	all    []*image
	saved  *os.File // the disk as each history finds it
	before *world   // what is acknowledged there
}

func newHistoryLab(t *testing.T, fs string) *historyLab {
	e := integration.New(t)
	r := e.NewRegistry()
	l := &historyLab{t: t, all: newImages(t, r, 4, 2000)}
	for i := range 3 {
		r.PushAs(l.all[0].name, fmt.Sprintf("proof/second%d:1", i))
	}
	l.d = newDisk(t, fs, e.Path("disk"))
	l.n = newNode(t, e, r, l.d.dir, newTrap(t, e, l.d.dir))
	l.n.baseName = l.all[0].name
	l.n.boot()
	w := newWorld()
	base := r.Ref(l.all[0].name)
	for _, err := range []error{l.n.pull(w, base, l.all[0]), l.n.unpack(w, base, l.all[0]),
		l.n.commit(w, "active-before", "before", nil), w.verify(l.n)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l.n.stop()
	if err := l.d.unmount(); err != nil {
		t.Fatal(err)
	}
	l.before, l.saved = w, l.d.save(t)
	return l
}

// cutAt runs a history until the sync number at of its last operation, cuts the power there, and checks what is left.
// If there is no such sync, it cuts the power after the end and reports that there are no more syncs. What a cut during
// an earlier operation leaves is that of a shorter history.
func (l *historyLab) cutAt(history []string, at int) (more bool, err error) {
	if err := l.d.restore(l.saved); err != nil {
		return false, err
	}
	if err := l.d.mount(); err != nil {
		return false, err
	}
	l.n.boot()
	if err := l.d.sync(); err != nil { // what the start wrote
		return false, err
	}
	w := l.before.copyOf()
	cutNow := func() {
		w.freeze()
		if err := l.d.cutPower(); err != nil {
			l.t.Errorf("cut the power: %v", err)
		}
		tank, ctrd, commands := l.n.running()
		l.n.kill(append(commands, tank, ctrd)...)
	}
	done := 0
	for i, op := range history {
		if i == len(history)-1 {
			l.n.trap.arm(at, cutNow)
		}
		if err = l.n.do(w, op, i, l.all); err != nil {
			break
		}
		done++
	}
	if more, _ = l.n.trap.disarm(); !more {
		if err != nil { // nothing excuses it
			return false, err
		}
		cutNow()
	}
	l.n.halt()
	if err := l.d.unmount(); err != nil {
		return more, err
	}
	if err := l.d.mount(); err != nil {
		return more, err
	}
	l.n.boot()
	if done < len(history) && history[done] == "repair" {
		if err := l.n.repair(); err != nil { // the cut left the damage
			return more, err
		}
	}
	if err := w.verify(l.n); err != nil {
		return more, err
	}
	w.thaw()
	for i := done; i < len(history); i++ {
		if err := l.n.do(w, history[i], i, l.all); err != nil {
			return more, fmt.Errorf("%s again: %w", history[i], err)
		}
	}
	if err := w.verify(l.n); err != nil {
		return more, fmt.Errorf("after the history was continued: %w", err)
	}
	if err := l.n.drain(); err != nil {
		return more, err
	}
	l.n.stop()
	return more, l.d.unmount()
}

// reset makes the lab usable after a failure.
func (l *historyLab) reset() {
	l.n.trap.disarm()
	l.n.halt()
	if err := l.d.unmount(); err != nil {
		l.t.Fatal(err)
	}
}

// history runs the history of a number until it was cut everywhere. TANK_PROOF_SYNC=N cuts it at this sync only.
func (l *historyLab) history(number int) (cuts, failures int64) {
	history := histories[number-1]
	at, only := 1, 0
	if v := os.Getenv("TANK_PROOF_SYNC"); v != "" {
		var err error
		if only, err = strconv.Atoi(v); err != nil {
			l.t.Fatalf("TANK_PROOF_SYNC: %v", err)
		}
		at = only
	}
	for ; ; at++ {
		more, err := l.cutAt(history, at)
		cuts++
		if err != nil {
			failures++
			l.t.Errorf("history %d (%s), cut at sync %d: %v", number, strings.Join(history, " "), at, err)
			l.reset()
		}
		if !more || at == only {
			return cuts, failures
		}
	}
}

// TestCutHistories runs histories of up to three operations. Each is cut at the first sync of its last operation,
// then at the second one, and so on, and at last after its end. After each cut everything acknowledged is intact, the
// history can go on, and nothing is left over when everything is removed. TANK_PROOF_RANGE=FIRST-LAST selects
// histories by number.
func TestCutHistories(t *testing.T) {
	for _, fs := range fileSystems() {
		t.Run(fs, func(t *testing.T) {
			c := newCampaign(t, integration.Run{Proof: "cut-histories", FS: fs, Also: map[string]int64{}},
				len(histories),
				[2]int{4, 5})
			l := newHistoryLab(t, fs)
			for c.more() {
				cuts, failures := l.history(c.next)
				c.run.Also["histories"]++
				c.done(cuts, failures)
			}
		})
	}
}
