package metadata

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// living is a database with records of each kind.
func living(t testing.TB) []byte {
	t.Helper()
	path := grown(t, 60)
	db, err := Open(path, &Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *Tx) error {
		layer := LayerKey("sha256:" + someHex)
		return errors.Join(
			tx.PutLayer(Layer{Key: layer, Dir: "7", DiffID: "sha256:" + someHex}),
			tx.PutSnapshot(Snapshot{Key: "default/1/a", Kind: Committed, Layer: layer}),
			tx.Hold(SnapshotHolder("default/1/a"), LayerNode(layer)),
			tx.Hold(Containerd, SnapshotNode("default/1/a")),
			tx.PutSnapshot(Snapshot{Key: "default/2/b", Kind: Active, Parent: "default/1/a", Dir: "8"}),
			tx.Hold(Containerd, SnapshotNode("default/2/b")),
			PutBinding(tx, Binding{ID: "d1", Holder: Containerd}),
			tx.Renew("example.com/x:1", time.Now()))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const someHex = "2222222222222222222222222222222222222222222222222222222222222222"

// survives opens a damaged database and uses it. It is refused, or reports a fault, or has none and works. What can be
// read of it makes a database without a fault.
func survives(t *testing.T, path string, text []byte) (outcome string) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, serr := Salvage(path)                                // before it is used
	if serr != nil && !errdefs.IsFailedPrecondition(serr) { // a newer schema
		t.Errorf("salvage: %v", serr)
	}
	db, err := Open(path, &Options{Existing: true, NoSync: true})
	switch {
	case err == nil:
		outcome = use(t, db)
	case errdefs.IsDataLoss(err), errdefs.IsFailedPrecondition(err):
		outcome = "refused"
	default:
		t.Errorf("open: %v", err)
	}
	if s.Complete && outcome != "sound" {
		t.Errorf("%s, but the salvage found no fault", outcome)
	}
	return outcome
}

// use reads and writes all kinds of records, and closes the database.
func use(t *testing.T, db *DB) (outcome string) {
	t.Helper()
	outcome = "sound"
	if err := db.Sound(); errdefs.IsDataLoss(err) {
		outcome = "faults"
	} else if err != nil {
		t.Errorf("sound: %v", err)
	}
	err := db.View(func(tx *Tx) error {
		_, ierr := tx.Images("", -1)
		_, berr := Bindings(tx)
		_, serr := tx.HeldSnapshots(Containerd)
		tx.AllHolders()
		return errors.Join(ierr, berr, serr)
	})
	werr := db.Update(func(tx *Tx) error {
		return errors.Join(tx.SetFlag("a", "b"), tx.ReleaseAll(Containerd))
	})
	for _, err := range []error{err, werr} {
		switch {
		case err == nil:
		case outcome == "sound":
			t.Errorf("no fault was found, but: %v", err)
		case !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err):
			t.Errorf("error of another class: %v", err)
		}
	}
	if err := db.Close(); err != nil && !errdefs.IsDataLoss(err) {
		t.Errorf("close: %v", err)
	}
	return outcome
}

// TestDamagedBytes changes random bytes of random pages, 600 times. Each ends in a clear error, in a fault that is
// found, or in a database that works; never in a crash, a hang or an allocation without bound.
func TestDamagedBytes(t *testing.T) {
	t.Parallel()
	whole := living(t)
	const seed = 13
	rnd := rand.New(rand.NewPCG(seed, seed))
	path := filepath.Join(t.TempDir(), "metadata.db")
	page := os.Getpagesize()
	count := map[string]int{}
	for n := range 600 {
		b := slices.Clone(whole)
		for range 1 + rnd.IntN(3) {
			at := rnd.IntN(len(b)/page) * page
			if rnd.IntN(2) == 0 { // headers and elements, which bbolt follows
				at += rnd.IntN(200)
			} else {
				at += rnd.IntN(page)
			}
			b[at] ^= byte(1 << rnd.IntN(8))
		}
		count[survives(t, path, b)]++
		if t.Failed() {
			t.Fatalf("change %d, seed %d", n, seed)
		}
	}
	if count["refused"] < 50 || count["sound"] < 10 {
		t.Errorf("outcomes %v", count)
	}
}

// FuzzDatabase writes bytes at places of a database that the input chooses: each 12 bytes are an offset and a value.
func FuzzDatabase(f *testing.F) {
	whole := living(f)
	f.Add([]byte{})
	f.Add(slices.Repeat([]byte{0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}, 3))
	for page := range len(whole) / os.Getpagesize() { // the flags, the count and the overflow of each page
		at := binary.LittleEndian.AppendUint32(nil, uint32(page*os.Getpagesize()+8))
		f.Add(append(at, 2, 0, 255, 255, 255, 255, 0, 0))
	}
	f.Fuzz(func(t *testing.T, changes []byte) {
		b := slices.Clone(whole)
		for ; len(changes) >= 12; changes = changes[12:] {
			copy(b[int(binary.LittleEndian.Uint32(changes))%len(b):], changes[4:12])
		}
		survives(t, filepath.Join(t.TempDir(), "metadata.db"), b)
	})
}
