package plugin

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/snapshot"
)

// labelManifest comes with a Prepare when containerd is told to pass annotations to the snapshotter.
const labelManifest = "containerd.io/snapshot/cri.manifest-digest"

// Layers unpacks layers for a snapshotter.
type Layers interface {
	// Announce says which layers will be wanted. It returns at once.
	Announce(layers []snapshot.Layer)
	// Apply has a layer unpacked for the snapshot that the mounts belong to and returns its diff ID.
	Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error)
}

type applier struct{ layers Layers }

// Apply serves containerd's diff service.
func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return a.layers.Apply(ctx, desc, mounts)
}

// announcer is a snapshotter that finds out, at a Prepare for an extraction, which layers will follow.
type announcer struct {
	snapshots.Snapshotter
	layers Layers
	recent *recentBlobs // nil without a content store

	// mu guards the manifest that was announced last and when: a pull prepares each of its layers.
	mu   sync.Mutex
	last digest.Digest
	when time.Time
}

// announceAgain is how long after an announcement the same manifest is not looked at again.
const announceAgain = time.Second

// Cleanup passes containerd's call on; embedding would hide that the snapshotter can do it.
func (a *announcer) Cleanup(ctx context.Context) error {
	if c, ok := a.Snapshotter.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

// Prepare announces the layers of the image to which the extraction belongs, then prepares.
func (a *announcer) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if a.recent != nil {
		var base snapshots.Info
		for _, o := range opts {
			if err := o(&base); err != nil {
				return nil, err
			}
		}
		a.announce(ctx, key, base.Labels)
	}
	return a.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// announce never fails: what can't be found out is unpacked when it is applied.
func (a *announcer) announce(ctx context.Context, key string, labels map[string]string) {
	target := labels[snapshots.LabelSnapshotRef]
	if target == "" {
		target = extractionTarget(key)
	}
	if target == "" {
		return
	}
	var candidates []digest.Digest
	if d, err := digest.Parse(labels[labelManifest]); err == nil {
		candidates = []digest.Digest{d}
	} else {
		candidates = a.recent.list()
	}
	for _, d := range candidates {
		if a.announced(d) && labels[labelManifest] != "" {
			return
		}
		layers := a.recent.image(ctx, d, target)
		if layers == nil {
			continue
		}
		a.layers.Announce(layers)
		a.mu.Lock()
		a.last, a.when = d, time.Now()
		a.mu.Unlock()
		return
	}
}

func (a *announcer) announced(d digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last == d && time.Since(a.when) < announceAgain
}

// extractionTarget is the chain ID in the key of an extraction ("<ns>/<seq>/extract-<unique> <chain ID>"), for pulls
// that carry no labels.
func extractionTarget(key string) string {
	name := key[strings.LastIndexByte(key, '/')+1:]
	if !strings.HasPrefix(name, "extract-") {
		return ""
	}
	_, target, _ := strings.Cut(name, " ")
	return target
}

// Limits on what is looked at to find a pull's layers.
const (
	maxRecent   = 64      // blobs that are remembered
	maxDocument = 8 << 20 // bytes of a manifest or config
)

// recentBlobs is a content store that remembers the small blobs that containerd asked for or committed lately: among
// them is the manifest of each pull that runs.
type recentBlobs struct {
	content.Store

	mu      sync.Mutex // guards digests
	digests []digest.Digest
}

func (r *recentBlobs) saw(d digest.Digest, size int64) {
	if size > maxDocument {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, have := range r.digests {
		if have == d {
			r.digests = append(r.digests[:i], r.digests[i+1:]...)
			break
		}
	}
	r.digests = append(r.digests, d)
	if len(r.digests) > maxRecent {
		r.digests = r.digests[1:]
	}
}

// list returns what is remembered, the latest first.
func (r *recentBlobs) list() []digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	ds := make([]digest.Digest, 0, len(r.digests))
	for i := len(r.digests) - 1; i >= 0; i-- {
		ds = append(ds, r.digests[i])
	}
	return ds
}

// Info is the call by which containerd adopts a blob.
func (r *recentBlobs) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	i, err := r.Store.Info(ctx, d)
	if err == nil {
		r.saw(d, i.Size)
	}
	return i, err
}

// Writer remembers what it commits.
func (r *recentBlobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := r.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &recentWriter{w, r}, nil
}

type recentWriter struct {
	content.Writer
	recent *recentBlobs
}

func (w *recentWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	st, serr := w.Status()
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil && serr == nil {
		w.recent.saw(w.Digest(), st.Offset)
	}
	return err
}

// image reads the layers of a manifest, if d is one and its chain leads to target; nil otherwise.
func (r *recentBlobs) image(ctx context.Context, d digest.Digest, target string) []snapshot.Layer {
	var manifest struct {
		Config ocispec.Descriptor   `json:"config"`
		Layers []ocispec.Descriptor `json:"layers"`
	}
	if !r.read(ctx, d, &manifest) || len(manifest.Layers) == 0 {
		return nil
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if !r.read(ctx, manifest.Config.Digest, &config) || len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return nil
	}
	layers := make([]snapshot.Layer, len(manifest.Layers))
	found := false
	chain := append([]digest.Digest{}, config.RootFS.DiffIDs...)
	for i, c := range identity.ChainIDs(chain) {
		if config.RootFS.DiffIDs[i].Validate() != nil || manifest.Layers[i].Digest.Validate() != nil {
			return nil
		}
		layers[i] = snapshot.Layer{Blob: manifest.Layers[i], DiffID: config.RootFS.DiffIDs[i]}
		found = found || c.String() == target
	}
	if !found {
		return nil
	}
	return layers
}

// read decodes a small JSON blob, if it is one.
func (r *recentBlobs) read(ctx context.Context, d digest.Digest, into any) bool {
	if d.Validate() != nil {
		return false
	}
	ra, err := r.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return false
	}
	defer ra.Close()
	if ra.Size() > maxDocument {
		return false
	}
	b := make([]byte, ra.Size())
	if _, err := ra.ReadAt(b, 0); err != nil {
		log.G(ctx).WithError(err).WithField("digest", d).Debug("announce")
		return false
	}
	return json.Unmarshal(b, into) == nil
}
