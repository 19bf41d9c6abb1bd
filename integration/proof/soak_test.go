package proof

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/tank-snapshotter/tank/integration"
)

// measure is what a node with an empty root takes.
type measure struct {
	resident    int64 // bytes of the daemon's memory
	descriptors int
	goroutines  int
	mounts      int
	files       int
	bytes       int64 // of the files below the root
}

func (m measure) String() string {
	return fmt.Sprintf("%d MiB resident, %d descriptors, %d goroutines, %d mounts, %d files of %d KiB", m.resident>>20,
		m.descriptors, m.goroutines, m.mounts, m.files, m.bytes>>10)
}

// measure measures the node, and ends the daemon for that: SIGQUIT makes it print its goroutines.
func (n *node) measure(t *testing.T) (m measure) {
	t.Helper()
	tank, _, _ := n.running()
	m.resident = status(t, tank, "VmRSS") << 10
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tank.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	m.descriptors = len(fds)
	text, err := mountsOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	m.mounts = len(regexp.MustCompile(regexp.QuoteMeta(n.e.Dir)).FindAllString(text, -1))
	err = filepath.WalkDir(n.k.Root, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		m.files++
		if err == nil && e.Type().IsRegular() {
			m.bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(tank.Pid(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-tank.Done()
	dump, err := os.ReadFile(tank.Log)
	if err != nil {
		t.Fatal(err)
	}
	m.goroutines = len(regexp.MustCompile(`(?m)^goroutine \d+ `).FindAll(dump, -1))
	if m.goroutines == 0 {
		t.Fatalf("the daemon printed no goroutines: %s", dump)
	}
	_ = os.Remove(tank.Log)
	n.startTank()
	n.awaitPlugin()
	return m
}

// grown returns what is more than before, beyond what differs from run to run.
func (m measure) grown(before measure) error {
	const memory, bytes = 32 << 20, 4 << 20
	if m.resident > before.resident+memory || m.descriptors > before.descriptors+8 ||
		m.goroutines > before.goroutines+16 || m.mounts > before.mounts || m.files > before.files ||
		m.bytes > before.bytes+bytes {
		return fmt.Errorf("after the work: %v; before: %v", m, before)
	}
	return nil
}

// slice is how long the work goes on between two times at which everything is removed.
const slice = time.Minute

// TestSoak works for TANK_PROOF_TIME: pulls, containers and collection through both doors. In the end memory,
// descriptors, goroutines, mounts and the disk are what they were after the first minute. Without that time it works
// for seconds.
func TestSoak(t *testing.T) {
	long := os.Getenv("TANK_PROOF_TIME") != ""
	each := 3 * time.Second
	highest := 2
	if long {
		each, highest = slice, 1<<30
		t.Setenv("TANK_PROOF_RANGE", fmt.Sprintf("1-%d", highest))
	}
	e := integration.New(t)
	r := e.NewRegistry()
	all := newImages(t, r, 8, 200_000)
	n := newNode(t, e, r, e.Path("node"), nil)
	n.boot()
	work := func(seed uint64) error {
		l := startLoad(n, newWorld(), all, seed, true)
		time.Sleep(each)
		for _, err := range l.end() {
			return err
		}
		return n.drain()
	}
	if err := work(0); err != nil {
		t.Fatal(err)
	}
	before := n.measure(t)
	t.Logf("before: %v", before)
	c := newCampaign(t, integration.Run{Proof: "soak"}, highest, [2]int{1, highest})
	for c.more() {
		err := work(uint64(c.next))
		if err == nil && c.next%10 == 0 {
			tank, _, _ := n.running()
			t.Logf("minute %d: %d MiB resident", c.next, status(t, tank, "VmRSS")>>10)
		}
		var failures int64
		if err != nil {
			failures = 1
			t.Errorf("minute %d: %v", c.next, err)
		}
		c.done(1, failures)
		if err != nil {
			return
		}
	}
	after := n.measure(t)
	t.Logf("after: %v", after)
	if err := after.grown(before); err != nil {
		c.run.Failures++
		t.Error(err)
	}
}
