package proof

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// killSome kills some of the running programs in random order, with random time between, and returns how many. Most
// of the time they are commands, because the others take longer to start again.
func (n *node) killSome(r *rand.Rand) int64 {
	tank, ctrd, targets := n.running()
	if len(targets) == 0 || r.IntN(4) == 0 {
		targets = append(targets, tank, ctrd)
	}
	targets = slices.DeleteFunc(targets, func(p *integration.Process) bool { return !p.Running() })
	r.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	if len(targets) > 0 {
		targets = targets[:1+r.IntN(len(targets))]
	}
	for _, p := range targets {
		n.kill(p)
		time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
	}
	return int64(len(targets))
}

// awaitKilled waits for the end of those processes that were killed.
func (n *node) awaitKilled(processes ...*integration.Process) {
	for _, p := range processes {
		n.mu.Lock()
		killed := n.killed[p]
		n.mu.Unlock()
		if killed {
			<-p.Done()
		}
	}
}

// revive starts the killed ones of daemon and containerd again, in random order.
func (n *node) revive(r *rand.Rand) {
	tank, ctrd, _ := n.running()
	starts := []func(){}
	if !tank.Running() {
		starts = append(starts, n.startTank)
	}
	if !ctrd.Running() {
		starts = append(starts, n.startContainerd)
	}
	r.Shuffle(len(starts), func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
	for _, start := range starts {
		start()
	}
	n.awaitPlugin()
}

// kill works for a while, kills, works on without the killed programs, starts them again and checks.
func (b *bench) kill(seed int) (kills int64, err error) {
	r := rand.New(rand.NewPCG(uint64(seed), 46))
	l := startLoad(b.n, b.w, b.all, uint64(seed), true)
	for range 3 + r.IntN(8) {
		time.Sleep(time.Duration(5+r.IntN(150)) * time.Millisecond)
		l.excused.Store(true)
		kills += b.n.killSome(r)
	}
	time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
	tank, ctrd, _ := b.n.running()
	for _, p := range []*integration.Process{tank, ctrd} {
		if p.Running() && r.IntN(2) == 0 { // or else it serves on
			b.n.kill(p)
			kills++
		}
	}
	l.ended.Store(true)
	b.n.hurry()
	errs := l.end()
	b.n.awaitKilled(tank, ctrd)
	b.n.revive(r)
	if err := errors.Join(append(errs, b.w.copyOf().verify(b.n))...); err != nil {
		return kills, err
	}
	if seed%drainEvery == 0 {
		return kills, b.drain()
	}
	return kills, nil
}

// TestRandomKills kills Tank's commands, its daemon and containerd in any order under pulls, removals, containers and
// collection. TANK_PROOF_RANGE=FIRST-LAST selects seeds; each kills several times.
func TestRandomKills(t *testing.T) {
	c := newCampaign(t, integration.Run{Proof: "kills", FS: "ext4"}, 1<<30, [2]int{1, 4})
	b := newBench(t, "ext4", 8)
	for c.more() {
		kills, err := b.kill(c.next)
		c.done(kills, b.failed(c.next, err))
	}
}
