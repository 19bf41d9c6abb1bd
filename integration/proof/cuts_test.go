package proof

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// bench is a node on a disk of its own, under random work.
type bench struct {
	t     *testing.T
	n     *node
	d     *disk
	all   []*image
	empty *os.File // the disk before the first start
	w     *world
}

func newBench(t *testing.T, fs string, images int) *bench {
	e := integration.New(t)
	r := e.NewRegistry()
	b := &bench{t: t, all: newImages(t, r, images, 20_000), w: newWorld()}
	b.d = newDisk(t, fs, e.Path("disk"))
	if err := b.d.unmount(); err != nil {
		t.Fatal(err)
	}
	b.empty = b.d.save(t)
	if err := b.d.mount(); err != nil {
		t.Fatal(err)
	}
	b.n = newNode(t, e, r, b.d.dir, nil)
	b.n.boot()
	return b
}

// drain removes everything, checks that nothing is left, and forgets the world.
func (b *bench) drain() error {
	err := b.n.drain()
	b.w = newWorld()
	return err
}

// renew begins again with an empty disk after a failure.
func (b *bench) renew() {
	b.t.Helper()
	b.n.halt()
	err := b.d.unmount()
	if err == nil {
		err = b.d.restore(b.empty)
	}
	if err == nil {
		err = b.d.mount()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.w = newWorld()
	b.n.boot()
}

// failed reports an error and begins again with an empty disk. It returns the number of errors.
func (b *bench) failed(seed int, err error) int64 {
	b.t.Helper()
	if err == nil {
		return 0
	}
	b.t.Errorf("seed %d: %v", seed, err)
	b.renew()
	return 1
}

// cut works for a while, cuts the power, and checks what is left.
func (b *bench) cut(seed int) error {
	r := rand.New(rand.NewPCG(uint64(seed), 45))
	l := startLoad(b.n, b.w, b.all, uint64(seed), false)
	time.Sleep(time.Duration(20+r.IntN(1200)) * time.Millisecond)
	l.excused.Store(true)
	b.w.freeze()
	if err := b.d.cutPower(); err != nil {
		return err
	}
	tank, ctrd, commands := b.n.running()
	b.n.kill(append(commands, tank, ctrd)...)
	l.ended.Store(true)
	b.n.hurry()
	errs := l.end()
	b.n.halt()
	if err := errors.Join(append(errs, b.d.unmount())...); err != nil {
		return err
	}
	if err := b.d.mount(); err != nil {
		return err
	}
	b.n.boot()
	b.w.thaw()
	if err := b.w.copyOf().verify(b.n); err != nil {
		return err
	}
	if seed%drainEvery == 0 {
		return b.drain()
	}
	return nil
}

// drainEvery is after how many cuts or kills everything is removed, so that a leak shows.
const drainEvery = 8

// TestPowerCuts cuts the power at random moments of random work by Tank's commands and containerd. Everything
// acknowledged is there after the start that follows. TANK_PROOF_RANGE=FIRST-LAST selects seeds.
func TestPowerCuts(t *testing.T) {
	for _, fs := range fileSystems() {
		t.Run(fs, func(t *testing.T) {
			c := newCampaign(t, integration.Run{Proof: "cuts", FS: fs}, 1<<30, [2]int{1, 3})
			b := newBench(t, fs, 8)
			for c.more() {
				c.done(1, b.failed(c.next, b.cut(c.next)))
			}
		})
	}
}
