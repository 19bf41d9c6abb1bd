package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/imagejson"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
)

// Limits on what is remembered to find the layers of a pull.
const (
	maxUnread = 256  // blobs that are not read yet
	maxOthers = 4096 // blobs that are no manifests
	maxImages = 256
	maxLayers = 8192 // of all images together
)

// announceInterval is the minimum time between two announcements of an image. A pull prepares each of its
// layers, and many pulls of one image may run at once.
const announceInterval = time.Second

// recentBlobs is a content store that remembers the small blobs which containerd recently asked for or
// committed. The manifest of each running pull is among them. Each blob is read once, however many Prepares
// follow.
type recentBlobs struct {
	content.Store
	// holderOf returns the holder that a call acts for. Reading a blob makes the holder hold it, so a blob
	// that one holder asked for is not read for another.
	holderOf func(context.Context) metadata.Holder

	// reading is held by the call that reads documents, so that their memory is bounded and none is read twice.
	reading sync.Mutex

	mu      sync.Mutex // guards what follows
	unread  []unreadBlob
	others  map[digest.Digest]struct{} // blobs that are no manifests
	images  map[digest.Digest]*recentImage
	byChain map[string]*recentImage // by the chain ID of each layer: the latest image with it
	layers  int                     // of all images
}

// unreadBlob is a blob that is not read yet.
type unreadBlob struct {
	digest digest.Digest
	holder metadata.Holder // that asked for it
}

// recentImage is an image whose manifest and config were read.
type recentImage struct {
	manifest  digest.Digest
	layers    []layer.Pair
	chains    []string
	announced time.Time // zero: never
	refused   error     // why its documents are not acceptable; then layers is empty
	unfit     error     // why its layers were not acceptable at the last announcement
	used      time.Time
}

func newRecentBlobs(store content.Store, holderOf func(context.Context) metadata.Holder) *recentBlobs {
	return &recentBlobs{
		Store: store, holderOf: holderOf, others: map[digest.Digest]struct{}{},
		images: map[digest.Digest]*recentImage{}, byChain: map[string]*recentImage{},
	}
}

// saw remembers a blob that may be a manifest. If there are too many, it forgets the oldest.
func (r *recentBlobs) saw(ctx context.Context, d digest.Digest, size int64) {
	if size > imagejson.MaxManifestSize {
		return
	}
	u := unreadBlob{d, r.holderOf(ctx)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.images[d]; i != nil {
		r.index(i)
		return
	}
	if _, ok := r.others[d]; ok || slices.Contains(r.unread, u) {
		return
	}
	if len(r.unread) == maxUnread {
		r.unread = slices.Delete(r.unread, 0, 1)
	}
	r.unread = append(r.unread, u)
}

// Info also remembers the blob, because containerd adopts a blob with this call.
func (r *recentBlobs) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	i, err := r.Store.Info(ctx, d)
	if err == nil {
		r.saw(ctx, d, i.Size)
	}
	return i, err
}

// Writer returns a writer that remembers the blob that it commits.
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
		w.recent.saw(ctx, w.Digest(), st.Offset)
	}
	return err
}

// due returns the layers of the image that has a layer with this chain ID, if they are to be announced now.
// It is the image whose manifest is named, or else, if named is "", the latest with that chain ID. due
// returns errdefs.ErrFailedPrecondition for an image that is refused, or whose layers do not fit the blobs
// of the root.
func (r *recentBlobs) due(ctx context.Context, chain string, named digest.Digest, fits func([]layer.Pair) error) (
	[]layer.Pair, error,
) {
	r.readAll(ctx, named)
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.byChain[chain]
	if named != "" {
		i = r.images[named]
	}
	if i == nil || !slices.Contains(i.chains, chain) { // the label may be wrong
		return nil, nil
	}
	i.used = time.Now()
	if i.refused != nil || i.used.Sub(i.announced) < announceInterval {
		return nil, cmp.Or(i.refused, i.unfit)
	}
	i.announced = i.used
	r.mu.Unlock()
	err := fits(i.layers)
	r.mu.Lock()
	if i.unfit = nil; err != nil {
		i.unfit = refusal(i.manifest, err)
		return nil, i.unfit
	}
	return i.layers, nil
}

func refusal(manifest digest.Digest, cause error) error {
	return fmt.Errorf("manifest %s: %w: %w", manifest, cause, errdefs.ErrFailedPrecondition)
}

// readAll reads the blob that a label names, or all blobs that are not read yet, the latest last.
func (r *recentBlobs) readAll(ctx context.Context, named digest.Digest) {
	h := r.holderOf(ctx)
	if r.next(named, h) == "" {
		return
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	for d := r.next(named, h); d != "" && ctx.Err() == nil; d = r.next(named, h) {
		image, found := r.read(ctx, d)
		r.learn(unreadBlob{d, h}, image, found)
		if d == named {
			return
		}
	}
}

// next returns the blob to read next for a holder; "" if there is none.
func (r *recentBlobs) next(named digest.Digest, h metadata.Holder) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if named != "" {
		if _, other := r.others[named]; other || r.images[named] != nil {
			return ""
		}
		return named
	}
	if i := slices.IndexFunc(r.unread, func(u unreadBlob) bool { return u.holder == h }); i >= 0 {
		return r.unread[i].digest
	}
	return ""
}

// learn remembers what a blob is. A blob that could not be read is read when it is seen again.
func (r *recentBlobs) learn(b unreadBlob, i *recentImage, found bool) {
	d := b.digest
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unread = slices.DeleteFunc(r.unread, func(u unreadBlob) bool { return u == b || found && u.digest == d })
	if !found || r.images[d] != nil {
		return
	}
	if i == nil {
		if len(r.others) == maxOthers {
			clear(r.others)
		}
		r.others[d] = struct{}{}
		return
	}
	for len(r.images) > 0 && (len(r.images) == maxImages || r.layers+len(i.chains) > maxLayers) {
		r.forgetOldest()
	}
	r.images[d] = i
	r.layers += len(i.chains)
	r.index(i)
}

// index makes i the image of its chain IDs. r.mu is held.
func (r *recentBlobs) index(i *recentImage) {
	i.used = time.Now()
	for _, c := range i.chains {
		if other := r.byChain[c]; i.refused == nil || other == nil || other.refused != nil {
			r.byChain[c] = i
		}
	}
}

// forgetOldest forgets the least recently used image. r.mu is held.
func (r *recentBlobs) forgetOldest() {
	var oldest *recentImage
	for _, i := range r.images {
		if oldest == nil || i.used.Before(oldest.used) {
			oldest = i
		}
	}
	delete(r.images, oldest.manifest)
	r.layers -= len(oldest.chains)
	for _, c := range oldest.chains {
		if r.byChain[c] == oldest {
			delete(r.byChain, c)
		}
	}
}

// read returns the image of a manifest; nil if the blob is no manifest. found is false if the blob or the
// image's config could not be read, which may succeed later.
func (r *recentBlobs) read(ctx context.Context, d digest.Digest) (i *recentImage, found bool) {
	doc, err := r.document(ctx, d, imagejson.MaxManifestSize)
	if err != nil {
		return nil, errors.Is(err, errNoDocument)
	}
	m, err := imagejson.Read("", doc)
	if err != nil {
		return r.folded(ctx, d, doc, err)
	}
	if m.Manifest == nil || len(m.Manifest.Layers) == 0 || imagejson.Fetchable(m.Manifest) != nil {
		return nil, true
	}
	manifest := doc
	if doc, err = r.document(ctx, m.Manifest.Config.Digest, imagejson.MaxConfigSize); err != nil {
		return nil, errors.Is(err, errNoDocument)
	}
	config, err := imagejson.ReadConfig(doc)
	if err != nil {
		return r.folded(ctx, d, manifest, err)
	}
	if imagejson.Pair(m.Manifest, config) != nil {
		return nil, true
	}
	i = &recentImage{manifest: d}
	for n, l := range m.Manifest.Layers {
		// Only the fields that Announce needs, because annotations may be long.
		blob := ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
		i.layers = append(i.layers, layer.Pair{Blob: blob, DiffID: config.RootFS.DiffIDs[n]})
	}
	i.chains = chainsOf(config.RootFS.DiffIDs)
	return i, true
}

func chainsOf(diffIDs []digest.Digest) (chains []string) {
	for _, c := range identity.ChainIDs(slices.Clone(diffIDs)) {
		chains = append(chains, c.String())
	}
	return chains
}

var errNoDocument = errors.New("not a document")

// document returns the bytes of a blob; errNoDocument if they do not begin like a JSON object or are more
// than limit.
func (r *recentBlobs) document(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	ra, err := r.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	size := ra.Size()
	if size == 0 || size > limit {
		return nil, errNoDocument
	}
	b := make([]byte, min(size, 512))
	if _, err := ra.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		log.G(ctx).WithError(err).WithField("digest", d).Debug("announce")
		return nil, err
	}
	if !beginsObject(b) {
		return nil, errNoDocument
	}
	rest := make([]byte, size)
	n := copy(rest, b)
	if _, err := ra.ReadAt(rest[n:], int64(n)); n < len(rest) && err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return rest, nil
}

// beginsObject reports whether the bytes begin with white space and a brace. It is false if they are all
// white space.
func beginsObject(b []byte) bool {
	for _, c := range b {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c == '{'
		}
	}
	return false
}
