package tree

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"

	"github.com/tank-snapshotter/tank/snapshot/entry"
)

// FuzzSeal: no content of a seal makes its reading fail with another error than data loss, and its entries are sorted
// and as many as it says. The target gives the seal a right checksum, so that what is behind it is read.
func FuzzSeal(f *testing.F) {
	dir := f.TempDir()
	name := filepath.Join(dir, "whole")
	list := []*entry.Entry{
		{Path: "", Type: entry.Dir, Mode: 0o755}, {Path: "a", Type: entry.File, Mode: 0o644},
		{Path: "b", Type: entry.Symlink, Target: "a"},
	}
	if err := WriteSeal(name, map[string]string{"layer": "x"}, len(list), ListOf(list), false); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:len(whole)-8])
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "seal")
		text = binary.BigEndian.AppendUint64(slices.Clone(text), xxh3.Hash(text))
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenSeal(t.Context(), path)
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		n, last := uint64(0), ""
		err = s.Each(func(e *entry.Entry) error {
			if n++; n > 1 && e.Path <= last {
				return errors.New("not sorted")
			}
			last = e.Path
			return nil
		})
		if err == nil && n != s.count || err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %d entries of %d: %v", text, n, s.count, err)
		}
	})
}
