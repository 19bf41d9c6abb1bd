package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

const toyType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"

// addEncrypted adds a layer with an encrypted blob. XOR stands in for the encryption.
func (m memory) addEncrypted(t testing.TB, tar []byte) layer.Pair {
	t.Helper()
	l := m.add(t, tar)
	secret := xor(m[l.Blob.Digest])
	delete(m, l.Blob.Digest)
	l.Blob.Digest, l.Blob.MediaType = digest.FromBytes(secret), toyType
	m[l.Blob.Digest] = secret
	return l
}

func xor(data []byte) []byte {
	out := slices.Clone(data)
	for i := range out {
		out[i] ^= 0x5a
	}
	return out
}

// toy decodes the blobs of addEncrypted and counts its calls.
type toy struct {
	calls atomic.Int32
	err   error  // nil: decode returns a stream
	end   error  // replaces io.EOF at the end of the stream; nil: io.EOF
	other []byte // replaces the decoded bytes; nil: the decoded bytes
}

func (d *toy) decode(_ context.Context, mediaType string, blob io.ReadCloser) (string, io.ReadCloser, error) {
	d.calls.Add(1)
	data, err := io.ReadAll(blob)
	if err = errors.Join(err, blob.Close()); err == nil {
		err = d.err
	}
	if err != nil || mediaType != toyType {
		return "", nil, errors.Join(err, fmt.Errorf("media type %s", mediaType))
	}
	plain := xor(data)
	if d.other != nil {
		plain = d.other
	}
	var r io.Reader = bytes.NewReader(plain)
	if d.end != nil {
		r = io.MultiReader(r, failing{d.end})
	}
	return "application/vnd.oci.image.layer.v1.tar+gzip", io.NopCloser(r), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// applyDecoded extracts a layer as containerd does. expected is the diff ID that containerd passes
// as a label; it is empty for containerd 2.2, which passes none.
func applyDecoded(w *world, key string, l layer.Pair, expected digest.Digest, decode layer.Decode) (
	digest.Digest, error,
) {
	var opts []snapshots.Opt
	if expected != "" {
		opts = append(opts, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotDiffID: expected.String()}))
	}
	mounts, err := w.For(metadata.Containerd).Prepare(ctx, key, "", opts...)
	if err != nil {
		return "", err
	}
	got, err := w.ApplyDecoded(ctx, l.Blob, mounts, decode)
	return got.Digest, err
}

// TestDecoded shows that an encrypted layer is decoded for each caller but extracted only once.
func TestDecoded(t *testing.T) {
	requireRoot(t)
	noKey := fmt.Errorf("no key: %w", errdefs.ErrFailedPrecondition)
	for _, row := range []struct {
		testName string
		named    bool // containerd names the diff ID
		then     func(t *testing.T, w *world, l layer.Pair, good *toy)
	}{
		{"a caller that can decode it", true, func(t *testing.T, w *world, l layer.Pair, good *toy) {
			before := w.layerDir(t, metadata.LayerKey(l.DiffID))
			for i, named := range []digest.Digest{l.DiffID, ""} {
				if got, err := applyDecoded(w, fmt.Sprint("again", i), l, named, good.decode); err != nil ||
					got != l.DiffID {
					t.Errorf("second extraction: %s, %v", got, err)
				}
			}
			if now := w.layerDir(t, metadata.LayerKey(l.DiffID)); now != before || good.calls.Load() != 3 {
				t.Errorf("directory %s became %s after %d calls", before, now, good.calls.Load())
			}
		}},
		{"a caller that cannot", true, func(t *testing.T, w *world, l layer.Pair, _ *toy) {
			for i, bad := range []*toy{{err: noKey}, {end: noKey}} {
				if got, err := applyDecoded(w, fmt.Sprint("bad", i), l, l.DiffID,
					bad.decode); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("got %s, %v", got, err)
				}
			}
			if _, err := applyDecoded(w, "none", l, l.DiffID, nil); !errdefs.IsNotImplemented(err) {
				t.Errorf("without a decoder: %v", err)
			}
			sealed := l
			sealed.Blob.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
			if _, err := applyDecoded(w, "plain", sealed, l.DiffID, nil); err == nil {
				t.Error("an encrypted blob was applied as a plain layer")
			}
		}},
		{"a caller whose decoder returns other bytes", true, func(t *testing.T, w *world, l layer.Pair, _ *toy) {
			tar := Tar(t, F("evil", "1"))
			got, err := applyDecoded(w, "other", l, l.DiffID, (&toy{other: Gzip(t, tar)}).decode)
			if err != nil || got != digest.FromBytes(tar) { // containerd refuses this diff ID
				t.Errorf("got %s, %v", got, err)
			}
		}},
		{"announcing a known layer decodes nothing", true, func(t *testing.T, w *world, l layer.Pair, good *toy) {
			w.Layers().Announce([]layer.Pair{l})
			must(t, w.db.View(func(tx *metadata.Tx) error {
				if d := tx.Verified(l.Blob.Digest); d != "" {
					t.Errorf("the blob is recorded to have the diff ID %s", d)
				}
				return nil
			}))
			if n := good.calls.Load(); n != 1 {
				t.Errorf("%d calls", n)
			}
		}},
		{"a damaged layer is decoded again", true, func(t *testing.T, w *world, l layer.Pair, good *toy) {
			for i, named := range []digest.Digest{l.DiffID, ""} {
				dir := w.layerDir(t, metadata.LayerKey(l.DiffID))
				must(t, os.WriteFile(filepath.Join(dir, "fs", "a"), []byte("broken"), 0o644))
				must(t, w.Layers().Doubt(metadata.LayerNode(metadata.LayerKey(l.DiffID))))
				if got, err := applyDecoded(w, fmt.Sprint("mended", i), l, named, good.decode); err != nil ||
					got != l.DiffID {
					t.Fatalf("%s, %v", got, err)
				}
			}
		}},
	} {
		t.Run(row.testName, func(t *testing.T) {
			w := open(t)
			l := w.blobs.addEncrypted(t, Tar(t, F("a", "1"), D("d")))
			good := &toy{}
			got, err := applyDecoded(w, "first", l, l.DiffID, good.decode)
			if err != nil || got != l.DiffID {
				t.Fatalf("got %s, %v", got, err)
			}
			must(t, w.For(metadata.Containerd).Commit(ctx, "done", "first"))
			must(t, w.db.View(func(tx *metadata.Tx) error {
				rec, err := tx.Layer(metadata.LayerKey(l.DiffID))
				if err == nil && !rec.Durable {
					t.Error("the layer is not recorded as durable")
				}
				return err
			}))
			row.then(t, w, l, good)
			sn := w.For(metadata.Containerd)
			view, err := sn.View(ctx, "view", "done")
			must(t, err)
			if got := show(t, view); !slices.Equal(got, []string{`a file "1"`, "d dir"}) {
				t.Errorf("got %q", got)
			}
			must(t, sn.Cleanup(ctx))
			left, err := filepath.Glob(filepath.Join(w.root, "layers", ".*"))
			if must(t, err); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
