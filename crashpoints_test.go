package tank_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/internal/ledger"
)

// crashWorkload is a sequence of operations on a fresh root.
type crashWorkload struct {
	name   string
	daemon bool
	ops    []crashOp
}

// crashWorkloads are the listed workloads of TestCrashPoints.
func crashWorkloads(c *crashImages) (all []crashWorkload) {
	for n, kinds := range [][]string{
		{"pull", "pull", "tag", "remove", "gc"},
		{"pull", "repair", "gc"},
		{"unpack", "prepare", "commit", "remove", "gc"},
		{"pull", "unpack", "prepare", "remove", "remove", "gc"},
		{"unpack", "unpack", "pull", "commit", "repair", "tag", "gc"},
	} {
		for _, daemon := range []bool{false, true} {
			if !daemon && slices.Contains(kinds, "unpack") {
				continue
			}
			w := crashWorkload{name: strings.Join(kinds, ","), daemon: daemon}
			f := facts{map[string]int{}, map[string]snapshotFact{}}
			rng := rand.New(rand.NewPCG(uint64(n), 3))
			for i, kind := range kinds {
				op := planOp(c, kind, i, f, rng)
				w.ops, f = append(w.ops, op), op.after
			}
			if daemon {
				w.name += " with a daemon"
			}
			all = append(all, w)
		}
	}
	return all
}

// run runs the workload until the end or the first fault. It returns what was acknowledged, and the operation that was
// under way, nil for none.
func (l crashWorkload) run(t *testing.T, w *crashWorld, fs *fsystest.FS) (f facts, underWay *crashOp) {
	defer func() { _ = w.close() }() // fails after a crash
	for i := range l.ops {
		op := &l.ops[i]
		if op.ready != nil {
			op.ready(w.crashImages)
		}
		var err error
		if w.tk == nil {
			err = w.open()
		}
		if err == nil {
			err = op.do(w)
		}
		if fs.Hits() > 0 {
			return op.before, op
		}
		if err != nil {
			t.Errorf("%s: %s: %v", l.name, op.name, err)
			return op.before, op
		}
		if !l.daemon {
			if err := w.close(); err != nil && fs.Hits() == 0 {
				t.Errorf("%s: after %s: close: %v", l.name, op.name, err)
			}
			if fs.Hits() > 0 {
				return op.after, nil
			}
		}
	}
	return l.ops[len(l.ops)-1].after, nil
}

// crashPoints are the names of all operations that change a root in the workloads, as pointName makes them. An
// operation that is not in this list is a new step: add it here.
var crashPoints = strings.Fields(`
	build:layers/.fixup-* build:layers/.layer-* build:metadata.db.new:sync build:rootfs/sha256/.fixup-*
	build:rootfs/sha256/.rootfs-*:sync build:snapshots/.snapshot-* chmod:ingest/D/data commit:metadata.db
	create:images.records.new create:index.json.new create:ingest/D/data create:ingest/D/state create:lock
	create:oci-layout.new create:tank-root.* mkdir:. mkdir:blobs mkdir:blobs/sha256 mkdir:ingest
	mkdir:ingest/D mkdir:layers mkdir:rootfs mkdir:rootfs/sha256 mkdir:snapshots mkdir:staging
	open:blobs/sha256/D open:lock open:snapshots/N/record remove:images.records.new remove:index.json.new
	remove:metadata.db.new remove:oci-layout.new removetree:ingest/.trash-* removetree:layers/.trash-*
	removetree:rootfs/sha256/.trash-* removetree:snapshots/.trash-* rename:blobs/sha256/D:ingest/.trash-*
	rename:images.records.new:images.records rename:index.json.new:index.json
	rename:ingest/D/data:blobs/sha256/D rename:ingest/D:ingest/.trash-* rename:layers/.fixup-*:layers/N
	rename:layers/.layer-*:layers/N rename:layers/N:layers/.trash-*
	rename:layers/N:rootfs/sha256/.rootfs-*/layer-N rename:metadata.db.new:metadata.db
	rename:oci-layout.new:oci-layout rename:rootfs/sha256/.fixup-*/seal:rootfs/sha256/.rootfs-*/fixup-N.seal
	rename:rootfs/sha256/.fixup-*:rootfs/sha256/.trash-* rename:rootfs/sha256/.rootfs-*/fs:rootfs/sha256/D
	rename:rootfs/sha256/.rootfs-*/seal:rootfs/sha256/D.seal
	rename:rootfs/sha256/.rootfs-*:rootfs/sha256/.trash-* rename:rootfs/sha256/D.seal:rootfs/sha256/.trash-*
	rename:rootfs/sha256/D:rootfs/sha256/.trash-* rename:snapshots/.snapshot-*:snapshots/N
	rename:snapshots/N:snapshots/.trash-* rename:tank-root.*:tank-root sync:images.records.new
	sync:index.json.new sync:ingest/D/data sync:lock sync:oci-layout.new sync:snapshots/N/record
	sync:tank-root.* syncdir:. syncdir:.. syncdir:blobs syncdir:blobs/sha256 syncdir:rootfs/sha256
	syncdir:snapshots syncdir:snapshots/N syncdir:snapshots/N/fs syncdir:snapshots/N/work syncfs:layers
	syncfs:snapshots/N/fs truncate:ingest/D/data truncate:lock write:images.records.new write:index.json.new
	write:ingest/D/data write:ingest/D/state write:lock write:oci-layout.new write:snapshots/N/record
	write:tank-root.*
`)

// givenUp matches points at which something unfinished goes to the trash. It depends on the moment at which a root is
// closed whether a workload comes to one.
var givenUp = regexp.MustCompile(`^rename:\S+/\.[a-z]+-\*:\S+/\.trash-\*$`)

// pointName returns the name of an operation that is the same in every run.
func pointName(line string) string {
	line, _, _ = strings.Cut(line, " = ")
	for _, r := range pointPatterns {
		line = r.pattern.ReplaceAllString(line, r.with)
	}
	return strings.ReplaceAll(line, " ", ":")
}

var pointPatterns = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`^(write|truncate|chmod) (\S+) .*`), "$1 $2"},
	{regexp.MustCompile(`[0-9a-f]{64,}`), "D"},
	{regexp.MustCompile(`/\.([a-z]+)-[0-9a-z.-]+`), "/.$1-*"},
	{regexp.MustCompile(`tank-root\.[0-9]+`), "tank-root.*"},
	{regexp.MustCompile(`(layers|snapshots)/[0-9]+`), "$1/N"},
	{regexp.MustCompile(`layer-[0-9]+`), "layer-N"},
	{regexp.MustCompile(`fixup-[0-9]+`), "fixup-N"},
}

// pointTally counts what TestCrashPoints has done.
type pointTally struct {
	mu                    sync.Mutex // guards the fields below
	points                map[string]int
	occurrences, failures int
}

func (c *pointTally) add(point string, failures int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.occurrences++
	c.points[point]++
	c.failures += failures
}

// TestCrashPoints ends the process before, during and after each operation of each workload, and checks what is left as
// TestCrashStates does (docs/adr/0044-crash-states.md). Without TANK_CRASHPOINTS=all it takes every 40th operation
// only.
func TestCrashPoints(t *testing.T) {
	requireRoot(t)
	level := log.GetLevel()
	must(t, log.SetLevel("fatal")) // after a crash all background work fails
	defer func() { must(t, log.SetLevel(level.String())) }()
	stride, shares := 40, 1
	if os.Getenv("TANK_CRASHPOINTS") == "all" {
		stride, shares = 1, 8 // eight jobs share a workload
	}
	scratch, begun := shmDir(t), time.Now()
	tally := pointTally{points: map[string]int{}}
	checkPoints(t, scratch)
	jobs := make(chan func(*testing.T, *crashImages), 1<<8)
	for n, moment := range []string{"before", "during", "after"} {
		for i := range crashWorkloads(newCrashImages(t)) {
			for share := range shares {
				jobs <- func(t *testing.T, c *crashImages) {
					op := 1 + share
					if stride > 1 { // other operations for each moment and workload
						op = 1 + (13*n+7*i)%stride
					}
					l := crashWorkloads(c)[i]
					for l.crash(t, c, scratch, op, moment, &tally) {
						op += max(stride, shares)
					}
				}
			}
		}
	}
	close(jobs)
	t.Run("points", func(t *testing.T) {
		for worker := range 4 * runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				c := newCrashImages(t)
				for job := range jobs {
					job(t, c)
				}
			})
		}
	})
	if stride == 1 {
		for _, p := range crashPoints {
			if tally.points[p] == 0 && !givenUp.MatchString(p) {
				t.Errorf("no workload comes to the point %s", p)
			}
		}
	}
	t.Logf("%d of %d points", len(tally.points), len(crashPoints))
	run := ledger.Run{
		Proof: "crashpoints", Count: int64(tally.occurrences), Failures: int64(tally.failures),
		Also: map[string]int64{
			"points": int64(len(tally.points)),
		}, FS: "tmpfs", Seconds: int64(time.Since(begun).Seconds()),
	}
	if stride == 1 {
		ledger.Append(t, run)
	} else {
		t.Logf("%d occurrences, %d failures", run.Count, run.Failures)
	}
}

// checkPoints compares the operations of the workloads without a crash with the list of points.
func checkPoints(t *testing.T, scratch string) {
	t.Helper()
	c := newCrashImages(t)
	have := map[string]bool{}
	for i, l := range crashWorkloads(c) {
		dir := filepath.Join(scratch, fmt.Sprint("workload-", i))
		fs := fsystest.New(t, dir)
		l.run(t, &crashWorld{crashImages: c, dir: dir, daemon: l.daemon, fs: fs}, fs)
		for _, line := range fs.History() {
			have[pointName(line)] = true
		}
	}
	for _, p := range slices.Sorted(maps.Keys(have)) {
		if !slices.Contains(crashPoints, p) && !givenUp.MatchString(p) {
			t.Errorf("not in the list of points: %s", p)
		}
	}
}

// crash runs the workload with a crash at operation number op. It returns false if there are fewer operations.
func (l crashWorkload) crash(t *testing.T, c *crashImages, scratch string, op int, moment string,
	tally *pointTally,
) (hit bool) {
	parent, err := os.MkdirTemp(scratch, "point-")
	must(t, err)
	defer os.RemoveAll(parent)
	dir := filepath.Join(parent, "root")
	fault := fmt.Sprintf("any #%d: crash %s", op, moment)
	fs := fsystest.New(t, dir, fault)
	w := &crashWorld{crashImages: c, dir: dir, daemon: l.daemon, fs: fs}
	f, underWay := l.run(t, w, fs)
	if fs.Hits() == 0 {
		return false
	}
	history := fs.History()
	at := slices.IndexFunc(history, func(line string) bool { return strings.Contains(line, " = crash "+moment) })
	if moment == "before" {
		at = slices.IndexFunc(history, func(line string) bool { return strings.HasSuffix(line, " = crash") })
	}
	w.fs = nil
	failures := 0
	if err := errors.Join(keepReserve(dir), w.checkCrashed(t, f, underWay)); err != nil {
		failures = 1
		t.Errorf("%s, %s (%s): %v", l.name, fault, history[at], err)
	}
	tally.add(pointName(history[at]), failures)
	return true
}

// keepReserve gives a root a reserve that takes no space. A root without a database may not have one.
func keepReserve(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "metadata.db")); err != nil {
		return nil
	}
	reserve := filepath.Join(dir, "reserve")
	return errors.Join(os.MkdirAll(reserve, 0o700), os.WriteFile(filepath.Join(reserve, "3"), nil, 0o600))
}
