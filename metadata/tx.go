package metadata

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// maxName is the largest size in bytes of a name that a client chooses: a snapshot key or a reference. bbolt allows
// keys of 32 KiB.
const maxName = 8 << 10

// Tx reads and writes records. It is valid only inside the function that a DB's method runs.
type Tx struct {
	entries
	touched map[Node]bool // nodes that this transaction wrote; nil in a read transaction
}

// checkName refuses names that can't be keys: empty, too long, or with the NUL that joins index keys.
func checkName(what, name string) error {
	if name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%s %.100q: not a name: %w", what, name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// badRecord returns the error for a record that can't be decoded.
func badRecord(what, key string, err error) error {
	return cause.Mark(fmt.Errorf("%s %s: record: %w: %w", what, key, err, errdefs.ErrDataLoss), cause.Database, "")
}

func (tx *Tx) get(bucket []byte, what, key string, into any) error {
	v := tx.value(bucket, []byte(key))
	if v == nil {
		return fmt.Errorf("%s %s: %w", what, key, errdefs.ErrNotFound)
	}
	if err := json.Unmarshal(v, into); err != nil {
		return badRecord(what, key, err)
	}
	return nil
}

func (tx *Tx) put(bucket []byte, what, key string, record any) error {
	if err := checkName(what, key); err != nil {
		return err
	}
	v, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, key, err)
	}
	return tx.bolt.Bucket(bucket).Put([]byte(key), v)
}

func (tx *Tx) putNode(n Node, record any) error {
	tx.touched[n] = true
	return tx.put(nodeBuckets[n.Kind], string(n.Kind), n.Key, record)
}

var nodeBuckets = map[Kind][]byte{
	KindBlob:     bucketBlobs,
	KindLayer:    bucketLayers,
	KindRootfs:   bucketRootfs,
	KindSnapshot: bucketSnapshots,
}

func (tx *Tx) has(n Node) bool { return tx.value(nodeBuckets[n.Kind], []byte(n.Key)) != nil }

// Blob returns the record of a blob, or errdefs.ErrNotFound.
func (tx *Tx) Blob(d digest.Digest) (b Blob, err error) {
	err = tx.get(bucketBlobs, "blob", d.String(), &b)
	return b, err
}

// PutBlob writes the record of a blob.
func (tx *Tx) PutBlob(b Blob) error { return tx.putNode(BlobNode(b.Digest), b) }

// Layer returns the record of a layer or fix-up, or errdefs.ErrNotFound.
func (tx *Tx) Layer(key string) (l Layer, err error) {
	err = tx.get(bucketLayers, "layer", key, &l)
	return l, err
}

// PutLayer writes the record of a layer or fix-up.
func (tx *Tx) PutLayer(l Layer) error { return tx.putNode(LayerNode(l.Key), l) }

// Rootfs returns the record of an assembled rootfs, or errdefs.ErrNotFound.
func (tx *Tx) Rootfs(manifest digest.Digest) (r Rootfs, err error) {
	err = tx.get(bucketRootfs, "rootfs", manifest.String(), &r)
	return r, err
}

// PutRootfs writes the record of a rootfs.
func (tx *Tx) PutRootfs(r Rootfs) error { return tx.putNode(RootfsNode(r.Manifest), r) }

// Image returns the record of a reference, or errdefs.ErrNotFound.
func (tx *Tx) Image(ref string) (i Image, err error) {
	err = tx.get(bucketImages, "image", ref, &i)
	return i, err
}

// PutImage writes the record of a reference. The caller must Hold what the image stands for.
func (tx *Tx) PutImage(i Image) error { return tx.put(bucketImages, "image", i.Ref, i) }

// DeleteImage deletes the record of a reference and releases all that it holds. It returns errdefs.ErrNotFound if
// there is no record.
func (tx *Tx) DeleteImage(ref string) error {
	if _, err := tx.Image(ref); err != nil {
		return err
	}
	if err := tx.bolt.Bucket(bucketImages).Delete([]byte(ref)); err != nil {
		return err
	}
	return tx.ReleaseAll(ImageHolder(ref))
}

// Images returns the first records, at most limit of them, whose references are greater than after. "" is less than
// every reference; a negative limit means no limit.
func (tx *Tx) Images(after string, limit int) ([]Image, error) {
	var page []Image
	for _, ref := range tx.page(bucketImages, nil, after, limit) {
		i, err := tx.Image(ref)
		if err != nil {
			return nil, err
		}
		page = append(page, i)
	}
	return page, nil
}

// ImagesOf returns the images of a repository, such as docker.io/library/alpine, whatever their tags and digests.
func (tx *Tx) ImagesOf(repository string) ([]Image, error) {
	var all []Image
	for _, separator := range []string{":", "@"} {
		prefix := repository + separator
		for _, rest := range tx.page(bucketImages, []byte(prefix), "", -1) {
			i, err := tx.Image(prefix + rest)
			if err != nil {
				return nil, err
			}
			all = append(all, i)
		}
	}
	return all, nil
}

// Keys returns the first keys of a kind's nodes, at most limit of them, that are greater than after. "" is less than
// every key; a negative limit means no limit.
func (tx *Tx) Keys(k Kind, after string, limit int) []string {
	return tx.page(nodeBuckets[k], nil, after, limit)
}

// SnapshotDirs returns a map from the name of each directory under snapshots/ to the key of its snapshot. It decodes no
// other field of the records, because a root may have tens of thousands of them and each opening reads all.
func (tx *Tx) SnapshotDirs() (map[string]string, error) {
	keys := map[string]string{}
	err := tx.bolt.Bucket(bucketSnapshots).ForEach(func(key, value []byte) error {
		var record struct {
			Dir string `json:"dir"`
		}
		if tx.hides(bucketSnapshots, key) {
			return nil
		}
		if err := json.Unmarshal(value, &record); err != nil {
			return badRecord("snapshot", string(key), err)
		}
		if record.Dir != "" {
			keys[record.Dir] = string(key)
		}
		return nil
	})
	return keys, err
}

// TakeIDs reserves n numbers that were never returned before, and returns the first. Callers name directories after
// them, and must wait until the transaction is durable: after a failed one, TakeIDs returns the same numbers again.
func (tx *Tx) TakeIDs(n uint64) (first uint64, err error) {
	b := tx.bolt.Bucket(bucketMeta)
	first = b.Sequence() + 1
	return first, b.SetSequence(b.Sequence() + n)
}

// SkipIDs makes TakeIDs return only numbers greater than last.
func (tx *Tx) SkipIDs(last uint64) error {
	b := tx.bolt.Bucket(bucketMeta)
	if b.Sequence() >= last {
		return nil
	}
	return b.SetSequence(last)
}

// Flag returns the value stored under name; "" if there is none.
func (tx *Tx) Flag(name string) string {
	return string(tx.bolt.Bucket(bucketMeta).Get([]byte("flag/" + name)))
}

// FlagDaemon is the flag of a root that a daemon serves. Such a root keeps the layers of an assembled rootfs.
const FlagDaemon = "daemon"

// SetFlag stores a fact about the root; the value "" removes it.
func (tx *Tx) SetFlag(name, value string) error {
	if value == "" {
		return tx.bolt.Bucket(bucketMeta).Delete([]byte("flag/" + name))
	}
	return tx.bolt.Bucket(bucketMeta).Put([]byte("flag/"+name), []byte(value))
}

// Verified returns the diff ID that was computed for the blob in this root; "" if none was.
func (tx *Tx) Verified(blob digest.Digest) digest.Digest {
	return digest.Digest(tx.value(bucketVerified, []byte(blob)))
}

// BlobsOf lists the blobs that decompress to diffID, whether or not they are still stored.
func (tx *Tx) BlobsOf(diffID digest.Digest) []digest.Digest {
	var blobs []digest.Digest
	for _, b := range tx.page(bucketDiffs, join(diffID.String(), ""), "", -1) {
		blobs = append(blobs, digest.Digest(b))
	}
	return blobs
}

// SetVerified records that the blob decompresses to diffID. The pair is kept as long as the blob or the layer.
func (tx *Tx) SetVerified(blob, diffID digest.Digest) error {
	if err := tx.bolt.Bucket(bucketVerified).Put([]byte(blob), []byte(diffID)); err != nil {
		return err
	}
	return tx.bolt.Bucket(bucketDiffs).Put(join(diffID.String(), blob.String()), nil)
}

// dropPairs deletes, after n was deleted, the verified pairs whose blob and layer are both gone.
func (tx *Tx) dropPairs(n Node) error {
	var blobs []digest.Digest
	var diffID digest.Digest
	switch n.Kind {
	case KindBlob:
		if diffID = tx.Verified(digest.Digest(n.Key)); diffID == "" {
			return nil
		}
		blobs = []digest.Digest{digest.Digest(n.Key)}
	case KindLayer:
		diffID = digest.Digest(n.Key)
		blobs = tx.BlobsOf(diffID)
	default:
		return nil
	}
	if tx.has(LayerNode(LayerKey(diffID))) {
		return nil
	}
	for _, b := range blobs {
		if tx.has(BlobNode(b)) {
			continue
		}
		if err := tx.drop(bucketVerified, []byte(b)); err != nil {
			return err
		}
		if err := tx.drop(bucketDiffs, join(diffID.String(), b.String())); err != nil {
			return err
		}
	}
	return nil
}

// join returns the index key with these parts.
func join(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

// Pull records when an unfinished pull last ran.
type Pull struct {
	Ref     string    `json:"ref"`
	Renewed time.Time `json:"renewed"`
	// Lapsed is when the pull was first found to be older than PullLife. Zero: it has not been.
	Lapsed time.Time `json:"lapsed,omitzero"`
}
