package metadata

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Hold makes h hold n. Holding a node twice is the same as once. It returns errdefs.ErrNotFound if n has no record.
func (tx *Tx) Hold(h Holder, n Node) error {
	if err := checkName("holder", string(h)); err != nil {
		return err
	}
	if !tx.has(n) {
		return fmt.Errorf("%s %s: %w", n.Kind, n.Key, errdefs.ErrNotFound)
	}
	if tx.Holds(h, n) {
		return nil
	}
	if err := tx.bolt.Bucket(bucketHolds).Put(join(string(h), string(n.Kind), n.Key), nil); err != nil {
		return err
	}
	return tx.bolt.Bucket(bucketHeld).Put(join(string(n.Kind), n.Key, string(h)), nil)
}

// Release ends h's hold of n; the last release deletes the record. It returns errdefs.ErrNotFound if h does not hold
// n, and errdefs.ErrFailedPrecondition for the last hold of a snapshot that has children.
func (tx *Tx) Release(h Holder, n Node) error {
	if !tx.Holds(h, n) {
		return fmt.Errorf("%s %s: not held by %s: %w", n.Kind, n.Key, h, errdefs.ErrNotFound)
	}
	if err := tx.drop(bucketHolds, join(string(h), string(n.Kind), n.Key)); err != nil {
		return err
	}
	if err := tx.drop(bucketHeld, join(string(n.Kind), n.Key, string(h))); err != nil {
		return err
	}
	if len(tx.Holders(n)) > 0 {
		return nil
	}
	return tx.delete(n)
}

// delete deletes a record without holders, and what belongs to it.
func (tx *Tx) delete(n Node) error {
	if n.Kind == KindSnapshot {
		if err := tx.unlinkSnapshot(n.Key); err != nil {
			return err
		}
	}
	if err := tx.drop(nodeBuckets[n.Kind], []byte(n.Key)); err != nil {
		return err
	}
	return tx.dropPairs(n)
}

// ReleaseAll ends all holds of h. It returns errdefs.ErrFailedPrecondition if a snapshot that only h holds has a
// child that another holder holds.
func (tx *Tx) ReleaseAll(h Holder) error {
	snapshots, err := tx.HeldSnapshots(h)
	if err != nil {
		return err
	}
	for _, key := range snapshots {
		if err := tx.Release(h, SnapshotNode(key)); err != nil {
			return err
		}
	}
	for _, k := range []Kind{KindRootfs, KindLayer, KindBlob} {
		for _, key := range tx.Held(h, k, "", -1) {
			if err := tx.Release(h, Node{k, key}); err != nil {
				return err
			}
		}
	}
	return nil
}

// MoveHolds makes to hold everything that from holds, and ends the holds of from.
func (tx *Tx) MoveHolds(from, to Holder) error {
	for _, k := range []Kind{KindSnapshot, KindRootfs, KindLayer, KindBlob} {
		for _, key := range tx.Held(from, k, "", -1) {
			if err := tx.Hold(to, Node{k, key}); err != nil {
				return err
			}
		}
	}
	return tx.ReleaseAll(from)
}

// Holds reports whether h holds n.
func (tx *Tx) Holds(h Holder, n Node) bool {
	key := join(string(h), string(n.Kind), n.Key)
	return exists(tx.bolt.Bucket(bucketHolds).Cursor(), key) && !tx.hides(bucketHolds, key)
}

// exists reports whether a bucket has the key. bbolt's Get returns nil for a missing key, but also for an empty value.
func exists(c interface{ Seek([]byte) ([]byte, []byte) }, key []byte) bool {
	k, _ := c.Seek(key)
	return bytes.Equal(k, key)
}

// Holders lists the holders of n.
func (tx *Tx) Holders(n Node) []Holder {
	var hs []Holder
	for _, h := range tx.page(bucketHeld, join(string(n.Kind), n.Key, ""), "", -1) {
		hs = append(hs, Holder(h))
	}
	return hs
}

// Held returns the first keys of the nodes of a kind that h holds, at most limit of them, that are greater than
// after. "" is less than every key; a negative limit means no limit.
func (tx *Tx) Held(h Holder, k Kind, after string, limit int) []string {
	return tx.page(bucketHolds, join(string(h), string(k), ""), after, limit)
}

// HeldSnapshots lists the snapshots that h holds, children before their parents. They can be released in this order.
func (tx *Tx) HeldSnapshots(h Holder) ([]string, error) {
	keys := tx.Held(h, KindSnapshot, "", -1)
	depths := make(map[string]int, len(keys))
	var depth func(key string) (int, error)
	depth = func(key string) (int, error) {
		if d, known := depths[key]; known || key == "" {
			return d, nil
		}
		s, err := tx.Snapshot(key)
		if err != nil {
			return 0, err
		}
		d, err := depth(s.Parent)
		depths[key] = d + 1
		return d + 1, err
	}
	for _, key := range keys {
		if _, err := depth(key); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(depths[b]-depths[a], strings.Compare(a, b))
	})
	return keys, nil
}

// AllHolders lists every holder that holds something.
func (tx *Tx) AllHolders() []Holder {
	var hs []Holder
	c := tx.bolt.Bucket(bucketHolds).Cursor()
	for k, _ := c.First(); k != nil; {
		if tx.hides(bucketHolds, k) {
			k, _ = c.Next()
			continue
		}
		h, _, _ := strings.Cut(string(k), "\x00")
		hs = append(hs, Holder(h))
		k, _ = c.Seek([]byte(h + "\x01"))
	}
	return hs
}

// PullLife is how long a pull that is not renewed keeps its holds.
const PullLife = 24 * time.Hour

// lapseGrace is the time between the marking of a pull that is older than PullLife and its end. If the clock has
// jumped, it is set right within that time, or a pull that runs renews itself.
const lapseGrace = time.Hour

// Renew records that the pull of ref runs at the time now.
func (tx *Tx) Renew(ref string, now time.Time) error {
	return tx.put(bucketPulls, "pull", ref, Pull{Ref: ref, Renewed: now})
}

// EndPull deletes the record of the pull of ref and releases all that it holds. A missing record is not an error.
func (tx *Tx) EndPull(ref string) error {
	if err := tx.bolt.Bucket(bucketPulls).Delete([]byte(ref)); err != nil {
		return err
	}
	return tx.ReleaseAll(PullHolder(ref))
}

// Pulls lists the pulls that have neither ended nor lapsed.
func (tx *Tx) Pulls() ([]Pull, error) {
	var ps []Pull
	for _, ref := range tx.page(bucketPulls, nil, "", -1) {
		var p Pull
		if err := tx.get(bucketPulls, "pull", ref, &p); err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// Lapse ends the pulls that were not renewed for PullLife before now. A jump of the clock ends nothing at once: the
// first call only marks a pull, and a call an hour later ends it if it was not renewed since.
func (tx *Tx) Lapse(now time.Time) error {
	ps, err := tx.Pulls()
	if err != nil {
		return err
	}
	for _, p := range ps {
		switch {
		case now.Sub(p.Renewed) <= PullLife:
			continue
		case p.Lapsed.IsZero() || now.Before(p.Lapsed):
			p.Lapsed = now
			err = tx.put(bucketPulls, "pull", p.Ref, p)
		case now.Sub(p.Lapsed) > lapseGrace:
			err = tx.EndPull(p.Ref)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
