package snapshot_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/record"
)

// TestDamagedLineIsMended shows that the durable record of a snapshot is written anew if a line before the last one is
// damaged, as a power cut leaves it when two lines were not synced. Otherwise Check would find that line for ever.
func TestDamagedLineIsMended(t *testing.T) {
	requireRoot(t)
	w := open(t)
	sn := w.For(holder)
	_, err := sn.Prepare(ctx, "key", "")
	must(t, err)
	_, err = sn.Update(ctx, snapshots.Info{Name: "key", Labels: map[string]string{"a": "b"}})
	must(t, err)
	found, err := filepath.Glob(filepath.Join(w.root, "snapshots", "*", record.Name))
	if err != nil || len(found) != 1 {
		t.Fatalf("records %q, %v", found, err)
	}
	text, err := os.ReadFile(found[0])
	must(t, err)
	lines := bytes.Count(text, []byte("\n"))
	if lines < 2 {
		t.Fatalf("%d lines", lines)
	}
	copy(text[20:], make([]byte, 10)) // in the first line
	must(t, os.WriteFile(found[0], text, 0o600))
	w = w.again(t)
	dir := filepath.Dir(found[0])
	for end := time.Now().Add(10 * time.Second); record.Check(dir) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not mended: %v", record.Check(dir))
		}
	}
	r, err := record.Read(dir)
	if err != nil || r.Labels["a"] != "b" {
		t.Errorf("labels %v, %v", r.Labels, err)
	}
	must(t, w.Check(ctx, func(f metadata.Fault) { t.Error(f) }))
}
