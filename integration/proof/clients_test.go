package proof

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tank-snapshotter/tank/integration"
)

// clientsBudget is the most resident memory that the daemon may take: that of TestLoad.
const clientsBudget = 256 << 20

// TestClients has many clients pull few images at once, half of them by Tank's command and half by containerd. The
// registry sends each blob once, every client gets its image, and the daemon stays within its memory. A range makes the
// long version: 500 clients and 10 images, once for each number.
func TestClients(t *testing.T) {
	clients, count := 40, 4
	if os.Getenv("TANK_PROOF_RANGE") != "" {
		clients, count = 500, 10
	}
	c := newCampaign(t, integration.Run{Proof: "clients", Also: map[string]int64{}}, 1<<30, [2]int{1, 1})
	for c.more() {
		failed := t.Failed()
		pullAtOnce(t, clients, count)
		c.run.Also["pulls"] += int64(clients)
		var failures int64
		if t.Failed() && !failed {
			failures = 1
		}
		c.done(1, failures)
	}
}

func pullAtOnce(t *testing.T, clients, count int) {
	e := integration.New(t)
	r := e.NewRegistry()
	all := newImages(t, r, count, 100_000)
	n := newNode(t, e, r, e.Path("node"), nil)
	n.boot()
	w := newWorld()
	r.ResetLog()
	errs := make([]error, clients)
	var pulls sync.WaitGroup
	for i := range clients {
		pulls.Go(func() {
			img := all[i/2%count]
			if i%2 == 0 {
				errs[i] = n.pull(w, r.Ref(img.name), img)
			} else {
				errs[i] = n.unpack(w, r.Ref(img.name), img)
			}
		})
	}
	pulls.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
	gets := map[string]int{}
	for _, g := range r.BlobGets() {
		gets[g.Blob().String()]++
	}
	for blob, times := range gets {
		if times > 1 {
			t.Errorf("%s was downloaded %d times", blob, times)
		}
	}
	if want := 1 + 2*count; len(gets) != want { // a shared layer; a layer and a config of each image
		t.Errorf("%d blobs were downloaded, %d wanted", len(gets), want)
	}
	tank, _, _ := n.running()
	if peak := status(t, tank, "VmHWM") << 10; peak > clientsBudget {
		t.Errorf("the daemon took %d MiB of memory, more than %d", peak>>20, clientsBudget>>20)
	} else {
		t.Logf("%d clients, %d blobs, %d MiB", clients, len(gets), peak>>20)
	}
	if err := w.verify(n); err != nil {
		t.Error(err)
	}
}

// status returns a number from /proc/PID/status.
func status(t *testing.T, p *integration.Process, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindStringSubmatch(string(b))
	if m == nil {
		t.Fatalf("no %s in %s", name, strings.Join(strings.Fields(string(b)), " "))
	}
	v, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
