package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// random is size bytes that do not compress, the same for the same seed.
func random(seed byte, size int) string {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// blobFixture is an image whose blobs take different times: one that is downloaded in several ranges,
// some in one piece, small ones.
type blobFixture struct {
	BuiltImage
	tree  []Node
	total int64 // bytes of the layers
}

// digests returns the digests of the blobs of the image.
func (f blobFixture) digests() []digest.Digest {
	all := []digest.Digest{f.Config.Digest}
	for _, l := range f.Layers {
		all = append(all, l.Digest)
	}
	return all
}

var blobImage = sync.OnceValues(func() (blobFixture, error) {
	var layers [][]Entry
	for i, size := range []int{3 << 20, 13 << 20, 1 << 20, 400 << 10, 50 << 10, 100} {
		layer := []Entry{dir("shared", 0o755), file("shared/last", 0o644, fmt.Sprintln(i)),
			dir(fmt.Sprintf("d%d", i), 0o750, at(1600000000+int64(i)))}
		for n := range 8 {
			layer = append(layer, file(fmt.Sprintf("d%d/f%d", i, n), 0o640, random(byte(i*8+n), size/8)))
		}
		layers = append(layers, layer)
	}
	var f blobFixture
	var err error
	if f.BuiltImage, err = BuildImage(layers, helloConfig); err != nil {
		return f, err
	}
	for _, l := range f.Layers {
		f.total += l.Size
	}
	f.tree, err = ExpectedTree(layers)
	return f, err
})

// newBlobRegistry is a registry that has the image as test/blobs:1.
func newBlobRegistry(t *testing.T, e *Env) (*Registry, blobFixture) {
	t.Helper()
	f, err := blobImage()
	if err != nil {
		t.Fatal(err)
	}
	r := e.NewRegistry()
	r.PushBuilt(f.BuiltImage, "test/blobs:1")
	return r, f
}

// slowRate makes a pull of the image take about a second.
const slowRate = 6 << 20

// ingests returns how many bytes of each blob are in ingest/.
func ingests(t testing.TB, k *TankRoot) map[digest.Digest]int64 {
	t.Helper()
	found := map[digest.Digest]int64{}
	dirs, err := filepath.Glob(filepath.Join(k.Root, "ingest", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		st, err := os.Stat(filepath.Join(dir, "data"))
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "state"))
		if err != nil {
			continue
		}
		if d := ingestDigest.Find(text); d != nil {
			found[digest.Digest(d)] = st.Size()
		}
	}
	return found
}

var ingestDigest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// state is what a killed pull has left.
type state struct {
	complete map[digest.Digest]bool
	partial  map[digest.Digest]int64
}

func stateOf(t testing.TB, k *TankRoot) state {
	return state{blobsOf(t, k.Root), ingests(t, k)}
}

// checkResumed checks with the registry's log that no complete blob was fetched again, and of the others
// only the missing bytes.
func (s state) checkResumed(t testing.TB, r *Registry) {
	t.Helper()
	for _, g := range r.BlobGets() {
		d := g.Blob()
		if s.complete[d] {
			t.Errorf("complete before, and fetched again: %s %s", d, g.Range)
		}
		first, _, _ := strings.Cut(strings.TrimPrefix(g.Range, "bytes="), "-")
		start, _ := strconv.ParseInt(first, 10, 64)
		if start < s.partial[d] {
			t.Errorf("%d bytes were there, and fetched again: %s from byte %d", s.partial[d], d, start)
		}
	}
}

// killPoint is a moment to kill: a time after a share of the layers was sent.
type killPoint struct {
	sent  float64
	later time.Duration
}

func (p killPoint) String() string { return fmt.Sprintf("%.0f%%+%v", p.sent*100, p.later) }

// await waits for that moment, or for the end of the pull.
func (p killPoint) await(t testing.TB, r *Registry, total int64, pull *Process) {
	t.Helper()
	Eventually(t, 30*time.Second, "so much is sent: "+p.String(), func() bool {
		return !pull.Running() || float64(r.Sent()) >= p.sent*float64(total)
	})
	time.Sleep(p.later)
}

var (
	manyPoints = []killPoint{{0, 30 * time.Millisecond}, {0.05, 0}, {0.2, 0}, {0.4, 0}, {0.6, 0}, {0.75, 0}, {0.9, 0},
		{0.97, 0},
		{1, 10 * time.Millisecond}, {1, 25 * time.Millisecond}, {1, 50 * time.Millisecond}, {1, 100 * time.Millisecond}}
	fewPoints = []killPoint{{0.1, 0}, {0.5, 0}, {0.9, 0}, {1, 20 * time.Millisecond}}
)

// TestKillPoints: kill -9 of the command at many moments, then a pull: the right tree, check finds
// nothing, and nothing that was there is fetched again.
func TestKillPoints(t *testing.T) {
	eachUser(t, func(t *testing.T, tank func(*Env) *TankRoot) {
		e := New(t)
		r, f := newBlobRegistry(t, e)
		ref := r.Ref("test/blobs:1")
		points := manyPoints
		if t.Name() != "TestKillPoints/root" {
			points = fewPoints
		}
		resumed := 0
		for _, p := range points {
			t.Run(p.String(), func(t *testing.T) {
				e.Use(t)
				k := tank(e)
				r.SetRate(slowRate)
				r.ResetLog()
				pull := k.StartPull(ref)
				p.await(t, r, f.total, pull)
				pull.Kill9()
				was := stateOf(t, k)
				resumed += len(was.partial)
				if _, err := os.Stat(filepath.Join(k.Root, "tank-root")); err == nil { // the pull had made a root
					k.MustRun("check") // finds nothing either before it is pulled again
				}
				r.SetRate(0)
				r.ResetLog()
				CheckTree(t, "pull again", k.expect(f.tree), k.Pull(ref))
				was.checkResumed(t, r)
				k.MustRun("check")
				CheckLayout(t, k)
			})
		}
		if resumed == 0 {
			t.Error("no kill left a part of a blob, so this shows nothing of them")
		}
	})
}

// TestKillAgain: a pull that is killed again and again succeeds in the end, since no attempt fetches
// again what others left, and none deletes it.
func TestKillAgain(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	ref := r.Ref("test/blobs:1")
	k := e.NewTank()
	r.SetRate(slowRate)
	var was state
	kills := 0
	for ; kills < 60; kills++ {
		r.ResetLog()
		pull := k.StartPull(ref)
		killPoint{sent: 0.2}.await(t, r, f.total, pull)
		running := pull.Running()
		pull.Kill9()
		was.checkResumed(t, r)
		now := stateOf(t, k)
		if lost := was.lost(now); lost != "" {
			t.Errorf("kill %d: %s", kills, lost)
		}
		if was = now; !running {
			break
		}
	}
	if kills < 3 || kills == 60 {
		t.Errorf("%d kills", kills)
	}
	CheckTree(t, "pull", f.tree, k.Pull(ref))
	k.MustRun("check")
}

// lost returns what s has and a later state lacks.
func (s state) lost(later state) string {
	for d := range s.complete {
		if !later.complete[d] {
			return fmt.Sprintf("%s was complete, and is not", d)
		}
	}
	for d, n := range s.partial {
		if !later.complete[d] && later.partial[d] < n {
			return fmt.Sprintf("%d bytes of %s were there, and %d are", n, d, later.partial[d])
		}
	}
	return ""
}

// TestKillDaemonPoints: kill -9 of the daemon while a command pulls through it: the command continues
// by itself, with what the daemon had downloaded.
func TestKillDaemonPoints(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	ref := r.Ref("test/blobs:1")
	for _, p := range fewPoints {
		t.Run(p.String(), func(t *testing.T) {
			e.Use(t)
			k := e.NewTank()
			k.Serve()
			r.SetRate(slowRate)
			r.ResetLog()
			pull := k.StartPull(ref)
			p.await(t, r, f.total, pull)
			_ = syscall.Kill(pull.Pid(), syscall.SIGSTOP)
			k.Daemon().Kill9()
			was := stateOf(t, k)
			r.SetRate(0)
			r.ResetLog()
			_ = syscall.Kill(pull.Pid(), syscall.SIGCONT)
			if code, err := pull.Wait(30 * time.Second); err != nil || code != 0 {
				t.Errorf("the command whose daemon was killed: exit %d, %v: %s", code, err, tail(pull.Log, 4000))
			}
			k.Serve()
			CheckTree(t, "pull again", f.tree, k.Pull(ref))
			was.checkResumed(t, r)
			k.MustRun("check")
			k.Daemon().Stop()
		})
	}
}

// TestInterrupt: Ctrl-C ends a pull soon, with an exit code that is not 0, and leaves nothing broken;
// the next pull continues from there.
func TestInterrupt(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	ref := r.Ref("test/blobs:1")
	for _, daemon := range []bool{false, true} {
		for _, p := range []killPoint{{0, 20 * time.Millisecond}, {0.3, 0}, {0.8, 0}} {
			t.Run(fmt.Sprintf("daemon=%v/%v", daemon, p), func(t *testing.T) {
				e.Use(t)
				k := e.NewTank()
				if daemon {
					k.Serve()
					defer func() { k.Daemon().Stop() }()
				}
				r.SetRate(slowRate / 2)
				r.ResetLog()
				pull := k.StartPull(ref)
				p.await(t, r, f.total, pull)
				_ = syscall.Kill(pull.Pid(), syscall.SIGINT)
				if code, err := pull.Wait(2 * time.Second); err != nil || code == 0 {
					t.Errorf("after Ctrl-C: exit %d, %v: %s", code, err, tail(pull.Log, 4000))
				}
				if _, err := os.Stat(k.Root); !errors.Is(err, os.ErrNotExist) { // else it came before the root was made
					k.MustRun("check")
				}
				var was state
				Eventually(t, 10*time.Second, "the daemon stops the download too", func() bool {
					was = stateOf(t, k)
					time.Sleep(100 * time.Millisecond)
					return fmt.Sprint(was) == fmt.Sprint(stateOf(t, k))
				})
				r.SetRate(0)
				r.ResetLog()
				CheckTree(t, "pull again", f.tree, k.Pull(ref))
				was.checkResumed(t, r)
				k.MustRun("check")
			})
		}
	}
}

// TestKilledBeforeRecord: a kill between the renaming of a blob or a layer and its record leaves files
// that do not disturb the next pull. A directory in layers/ without a record is ignored,
// a complete blob is not fetched again, and an incomplete one is.
func TestKilledBeforeRecord(t *testing.T) {
	e := New(t)
	r, f := newBlobRegistry(t, e)
	ref := r.Ref("test/blobs:1")
	whole, broken := f.Layers[1], f.Layers[2]
	rows := []struct {
		name  string
		leave func(t *testing.T, k *TankRoot)
		not   digest.Digest // must not be fetched
	}{
		{"layers", func(t *testing.T, k *TankRoot) {
			for id := range 20 {
				fs := filepath.Join(k.Root, "layers", strconv.Itoa(id), "fs")
				if err := os.MkdirAll(filepath.Join(fs, "left"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}, ""},
		{"whole blob", func(t *testing.T, k *TankRoot) { leaveBlob(t, k, whole.Digest, f.Blobs[whole.Digest]) },
			whole.Digest},
		{"broken blob", func(t *testing.T, k *TankRoot) { leaveBlob(t, k, broken.Digest, make([]byte, broken.Size)) },
			""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e.Use(t)
			k := e.NewTank()
			k.Make()
			row.leave(t, k)
			r.ResetLog()
			res := k.Run("pull", "--progress", "none", ref)
			if res.Code != 0 {
				t.Fatalf("%s", res)
			}
			CheckTree(t, "pull", f.tree, strings.TrimSuffix(res.Stdout, "\n"))
			for _, g := range r.BlobGets() {
				if g.Blob() == row.not {
					t.Errorf("fetched, though it was there: %s %s", g.Blob(), g.Range)
				}
			}
			k.MustRun("check")
		})
	}
}

// leaveBlob puts a file where a blob belongs, as a commit does before the record.
func leaveBlob(t *testing.T, k *TankRoot, d digest.Digest, b []byte) {
	t.Helper()
	if err := os.WriteFile(blobFile(k.Root, d), b, 0o444); err != nil {
		t.Fatal(err)
	}
}
