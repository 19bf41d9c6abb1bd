package metadata

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Binding records for which holder a containerd acts. A containerd is identified by its database; see docs/adr/0019.
type Binding struct {
	ID     string `json:"id"`
	Holder Holder `json:"holder"`
	// Inode and Born are the inode number and the birth time of the database's file. Both are zero for a caller whose
	// database Tank could not open, and in a binding that another one has replaced.
	Inode uint64    `json:"inode,omitempty"`
	Born  time.Time `json:"born,omitzero"`
	// Path is the path of the file when it was last seen. Empty: unknown.
	Path string `json:"path,omitempty"`
	// Writes is the number of the last transaction that was seen in the database. A smaller one later means that the
	// file was emptied, or restored from a backup. 0: not known.
	Writes uint64 `json:"writes,omitempty"`
	// First is, by namespace, the sequence number of the first snapshot that this database made here. The database can
	// know a snapshot with a smaller number only from somewhere else.
	First map[string]uint64 `json:"first,omitempty"`
	// Recognized is true if the database was found to be the one that made what the holder holds. Such a binding never
	// changes to another holder.
	Recognized bool `json:"settled,omitempty"`
	// Process identifies the process that was connected last.
	Process string    `json:"process,omitempty"`
	Seen    time.Time `json:"seen"`
}

const bindingPrefix = "binding/"

// Bindings lists all bindings, by ID.
func Bindings(tx *Tx) ([]Binding, error) {
	var bs []Binding
	for _, id := range tx.page(bucketMeta, []byte(bindingPrefix), "", -1) {
		var b Binding
		if err := tx.get(bucketMeta, "binding", bindingPrefix+id, &b); err != nil {
			return nil, err
		}
		bs = append(bs, b)
	}
	return bs, nil
}

// PutBinding adds or replaces a binding.
func PutBinding(tx *Tx, b Binding) error {
	if err := checkName("holder", string(b.Holder)); err != nil {
		return err
	}
	return tx.put(bucketMeta, "binding", bindingPrefix+b.ID, b)
}

// DeleteBinding deletes a binding. A missing binding is not an error.
func DeleteBinding(tx *Tx, id string) error {
	return tx.bolt.Bucket(bucketMeta).Delete([]byte(bindingPrefix + id))
}

// containerdPrefix is the prefix of the holders of all containerds but the first.
const containerdPrefix = string(Containerd) + "/"

// ContainerdHolder returns the holder of a containerd that is not the first of its root.
func ContainerdHolder(id string) Holder { return Holder(containerdPrefix + id) }

// IsContainerd reports whether h is the holder of a containerd.
func (h Holder) IsContainerd() bool {
	kind, _ := h.Split()
	return kind == HolderContainerd
}

// SnapshotKey returns the key under which a snapshot is recorded that the holder itself calls key. The holder is a
// part of it because two containerds number their snapshots independently of each other and choose the same keys.
func (h Holder) SnapshotKey(key string) string {
	if key == "" || h == Containerd || !h.IsContainerd() {
		return key
	}
	return string(h) + "/" + key
}

// SnapshotName is the reverse of SnapshotKey.
func (h Holder) SnapshotName(key string) string {
	if h == Containerd || !h.IsContainerd() {
		return key
	}
	return strings.TrimPrefix(key, string(h)+"/")
}

// Rekeyed is a snapshot whose key has changed.
type Rekeyed struct{ Old, New string }

// HandOver makes to hold everything that from holds, and renames the snapshots to keys of to. If to already has a
// snapshot with such a key, that snapshot stays and gets a new key. Both holders are containerds.
func HandOver(tx *Tx, from, to Holder) ([]Rekeyed, error) {
	keys, err := tx.HeldSnapshots(from)
	if err != nil {
		return nil, err
	}
	slices.Reverse(keys) // parents first
	var moved []Rekeyed
	rekey := func(old, new string) error {
		s, err := tx.Snapshot(old)
		if err != nil {
			return err
		}
		s.Key = new
		if err := tx.RenameSnapshot(old, s); err != nil {
			return err
		}
		moved = append(moved, Rekeyed{old, new})
		return nil
	}
	for _, key := range keys {
		name := to.SnapshotKey(from.SnapshotName(key))
		if name != key {
			if tx.has(SnapshotNode(name)) {
				if err := rekey(name, freeKey(tx, name)); err != nil {
					return nil, err
				}
			}
			if err := rekey(key, name); err != nil {
				return nil, err
			}
		}
		if err := moveHold(tx, from, to, SnapshotNode(name)); err != nil {
			return nil, err
		}
	}
	for _, k := range []Kind{KindRootfs, KindLayer, KindBlob} {
		for _, key := range tx.Held(from, k, "", -1) {
			if err := moveHold(tx, from, to, Node{k, key}); err != nil {
				return nil, err
			}
		}
	}
	return moved, nil
}

func moveHold(tx *Tx, from, to Holder, n Node) error {
	if err := tx.Hold(to, n); err != nil {
		return err
	}
	return tx.Release(from, n)
}

// setAside is a part of the new key of a snapshot whose old key another snapshot needed.
const setAside = " (replaced "

// freeKey returns an unused key for a snapshot whose key another one needs.
func freeKey(tx *Tx, key string) string {
	for n := 1; ; n++ {
		if free := fmt.Sprintf("%s%s%d)", key, setAside, n); !tx.has(SnapshotNode(free)) {
			return free
		}
	}
}

// Newest returns when the newest snapshot or blob that h holds was recorded. It is the zero time if h holds neither.
func Newest(tx *Tx, h Holder) (newest time.Time, err error) {
	var record struct {
		Created time.Time `json:"created"`
	}
	for _, k := range []Kind{KindSnapshot, KindBlob} {
		for _, key := range tx.Held(h, k, "", -1) {
			v := tx.bolt.Bucket(nodeBuckets[k]).Get([]byte(key))
			if err := json.Unmarshal(v, &record); err != nil {
				return newest, badRecord(string(k), key, err)
			}
			if record.Created.After(newest) {
				newest = record.Created
			}
		}
	}
	return newest, nil
}

// HoldsAny reports whether h holds anything.
func (tx *Tx) HoldsAny(h Holder) bool {
	return len(tx.page(bucketHolds, join(string(h), ""), "", 1)) > 0
}

// Sequence splits a containerd key, "<namespace>/<sequence>/<name>". ok is false for any other key.
func Sequence(key string) (namespace string, sequence uint64, ok bool) {
	namespace, rest, ok := strings.Cut(key, "/")
	digits, _, more := strings.Cut(rest, "/")
	if !ok || !more || namespace == "" || digits == "" || len(digits) > 19 || digits[0] == '0' {
		return "", 0, false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return "", 0, false
		}
		sequence = sequence*10 + uint64(c-'0')
	}
	return namespace, sequence, true
}

// LastSequence returns the largest sequence number of the snapshots in a namespace that h holds; 0 if there are none.
func LastSequence(tx *Tx, h Holder, namespace string) (last uint64) {
	prefix := join(string(h), string(KindSnapshot), h.SnapshotKey(namespace+"/"))
	for _, rest := range tx.page(bucketHolds, prefix, "", -1) {
		if _, n, ok := Sequence(namespace + "/" + rest); ok {
			last = max(last, n)
		}
	}
	return last
}

// SetAside gives new keys to the snapshots in a namespace that h holds and whose sequence number is at least sequence.
// Their containerd's database does not know them any more and will use these numbers again.
func SetAside(tx *Tx, h Holder, namespace string, sequence uint64) (moved []Rekeyed, err error) {
	prefix := join(string(h), string(KindSnapshot), h.SnapshotKey(namespace+"/"))
	for _, rest := range tx.page(bucketHolds, prefix, "", -1) {
		name := namespace + "/" + rest
		if _, n, ok := Sequence(name); !ok || n < sequence || strings.Contains(name, setAside) {
			continue
		}
		key := h.SnapshotKey(name)
		s, err := tx.Snapshot(key)
		if err != nil {
			return nil, err
		}
		s.Key = freeKey(tx, key)
		if err := tx.RenameSnapshot(key, s); err != nil {
			return nil, err
		}
		moved = append(moved, Rekeyed{key, s.Key})
	}
	return moved, nil
}

// latest orders bindings by the time at which they were seen, the latest first.
func latest(a, b Binding) int { return cmp.Or(b.Seen.Compare(a.Seen), strings.Compare(a.ID, b.ID)) }

// BindingOf returns the latest binding to a holder. ok is false if there is none.
func BindingOf(bs []Binding, h Holder) (b Binding, ok bool) {
	bs = slices.SortedFunc(slices.Values(bs), latest)
	i := slices.IndexFunc(bs, func(b Binding) bool { return b.Holder == h })
	if i < 0 {
		return Binding{}, false
	}
	return bs[i], true
}
