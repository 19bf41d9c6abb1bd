package layer

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/budget"
	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/descriptors"
	"github.com/tank-snapshotter/tank/internal/diskspace"
	"github.com/tank-snapshotter/tank/internal/interrupt"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/observe"
	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/internal/tarstream"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
)

// slots is how many layers whose blobs are here are unpacked at once.
const slots = 16

// followFactor times slots is how many layers are unpacked at once while they are downloaded.
const followFactor = 2

// maxAnnounced is the largest number of announcements in memory. A pull has at most a few hundred layers.
const maxAnnounced = 8192

// unpacks runs at most one unpack for each blob. An unpack can begin while the blob is being downloaded.
type unpacks struct {
	s     *Store
	slots chan struct{} // for layers whose blobs are here
	// following are the slots for layers that are being downloaded. An unpack takes up to 2 MB of memory.
	following chan struct{}

	// mu guards jobs and announced.
	mu        sync.Mutex
	jobs      map[digest.Digest]*job // by blob
	announced map[digest.Digest]Pair // by blob: what to unpack when an ingest of it opens
}

// request is what is to be unpacked.
type request struct {
	pair   Pair
	decode Decode // nil: the store reads the blob itself
	// descriptors is how many files the unpack may have open. 0: no limit.
	descriptors descriptors.Share
}

// unpacked is the outcome of an unpack. After an error only the fields that were known by then are set.
type unpacked struct {
	followed bool // the bytes came from an ingest, which may not have become the blob
	diffID   digest.Digest
	dir      string         // a staged name in layers/, with fs and seal; empty if the blob was only verified
	record   metadata.Layer // of dir
}

// job is the unpack of one blob, running or finished and waiting to be claimed.
type job struct {
	request
	cancel context.CancelFunc
	here   chan struct{} // closed when all of its blob is here
	once   sync.Once     // closes here
	done   chan struct{} // closed when the fields below are set

	unpacked
	err   error
	ended time.Time

	taken atomic.Bool // a caller of take may move or delete dir

	// recording is held by a claimer that records the layer, so that the other claimers find the record.
	recording lockorder.Mutex
}

func newJob(r request, cancel context.CancelFunc) *job {
	return &job{
		request: r, cancel: cancel, here: make(chan struct{}), done: make(chan struct{}),
		recording: lockorder.Mutex{Rank: lockorder.Claim},
	}
}

// take reports whether the caller is the first to take the job's directory, and may move or delete it. A second caller
// must not move what the first one deletes.
func (j *job) take() bool { return j.dir != "" && j.taken.CompareAndSwap(false, true) }

func newUnpacks(s *Store) *unpacks {
	return &unpacks{
		s: s, slots: make(chan struct{}, slots), following: make(chan struct{}, followFactor*slots),
		jobs: map[digest.Digest]*job{}, announced: map[digest.Digest]Pair{},
	}
}

// Announce names layers that will be claimed. The unpack of each begins as soon as its blob is here or
// begins to arrive. A call costs one read transaction, and may name layers that were announced before.
func (s *Store) Announce(layers []Pair) {
	u := s.unpacks
	unknown := u.unknown(layers)
	u.mu.Lock()
	for _, l := range unknown {
		if len(u.announced) >= maxAnnounced {
			clear(u.announced)
		}
		u.announced[l.Blob.Digest] = l
	}
	u.mu.Unlock()
	for _, l := range unknown {
		s.Ingested(l.Blob.Digest)
	}
}

// Fits returns errdefs.ErrFailedPrecondition if the blob of one of the layers is here and has another size than the
// layer's descriptor. A download would have failed for the same reason. Size 0 in a descriptor means unknown.
func (s *Store) Fits(layers []Pair) error {
	for _, l := range layers {
		if size, here := s.blobs.Size(l.Blob.Digest); here && l.Blob.Size != 0 && l.Blob.Size != size {
			return cause.Mark(fmt.Errorf("layer %s: %d bytes where the descriptor has %d: %w",
				l.Blob.Digest, size, l.Blob.Size, errdefs.ErrFailedPrecondition), cause.Document, "")
		}
	}
	return nil
}

// unknown returns those of the layers that have to be unpacked and need no decoder. It returns none if the database
// can't be read.
func (u *unpacks) unknown(layers []Pair) (unknown []Pair) {
	err := u.s.db.ViewPending(func(tx *metadata.Tx) error {
		for _, l := range layers {
			if decompress.Supported(l.Blob.MediaType) && !isKnown(tx, l) {
				unknown = append(unknown, l)
			}
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return unknown
}

// Ingested is called when a blob begins to arrive. It begins the unpack if the layer was announced, and returns at
// once.
func (s *Store) Ingested(blob digest.Digest) {
	u := s.unpacks
	u.mu.Lock()
	l, ok := u.announced[blob]
	u.mu.Unlock()
	if !ok {
		return
	}
	u.start(context.Background(), l)
}

// start returns the job of a blob. It begins a new one if there is none or if the last one failed. The job outlives the
// call, but keeps the values of its context, which decide where blobs are read from.
func (u *unpacks) start(ctx context.Context, l Pair) (j *job, began bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if j := u.jobs[l.Blob.Digest]; j != nil && !j.failed() {
		return j, false
	}
	ctx, cancel := u.s.work.Bind(context.WithoutCancel(ctx))
	j = newJob(request{pair: l}, cancel)
	u.jobs[l.Blob.Digest] = j
	u.s.work.Add()
	go func() {
		defer u.s.work.Done()
		defer cancel()
		u.run(ctx, j)
	}()
	return j, true
}

// once unpacks a blob in the call itself. The job is in no table, so no other call finds it.
func (u *unpacks) once(ctx context.Context, r request) *job {
	ctx, cancel := u.s.work.Bind(ctx)
	defer cancel()
	u.s.work.Add()
	defer u.s.work.Done()
	j := newJob(r, cancel)
	u.run(ctx, j)
	return j
}

func (j *job) failed() bool {
	select {
	case <-j.done:
		return j.err != nil
	default:
		return false
	}
}

// busy reports whether a layer is being unpacked or waits for bytes.
func (u *unpacks) busy() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, j := range u.jobs {
		select {
		case <-j.done:
		default:
			return true
		}
	}
	return false
}

// forget removes a job from the table, unless another job is there in its place.
func (u *unpacks) forget(j *job) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.jobs[j.pair.Blob.Digest] == j {
		delete(u.jobs, j.pair.Blob.Digest)
	}
}

// forgotten reports whether a job is no longer in the table.
func (u *unpacks) forgotten(j *job) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.jobs[j.pair.Blob.Digest] != j
}

// run does the job. A job that fails is forgotten: the next ingest or claim begins a new one.
func (u *unpacks) run(ctx context.Context, j *job) {
	defer close(j.done)
	// An unpack that follows a download mostly waits for bytes. It must not take the slots of those
	// whose blobs are here.
	slots := u.following
	if _, here := u.s.blobs.Size(j.pair.Blob.Digest); here {
		slots = u.slots
	}
	if slots = j.slot(ctx, slots, u.slots); slots == nil {
		j.err = ctx.Err()
		u.forget(j)
		return
	}
	defer func() { <-slots }()
	share, release, err := descriptors.Process.Take(ctx, descriptors.Extraction)
	if err != nil {
		j.err = err
		u.forget(j)
		return
	}
	defer release()
	j.descriptors = share
	j.err = u.observed(ctx, j.request, &j.unpacked)
	j.ended = time.Now()
	if j.err != nil {
		u.forget(j)
		if j.dir != "" {
			err := nodes.RemoveAll(ctx, j.dir, nil)
			switch {
			case ctx.Err() != nil: // the store closes: the directory is deleted now or by the next process
				u.s.dir.Delete(j.dir)
			case err != nil:
				log.G(ctx).WithError(err).Warn("unpack: an unfinished directory could not be deleted")
			}
		}
	}
}

// slot takes a slot of first or, once the job's blob is here, of first or whole, because slow downloads may occupy all
// slots of first. It returns the channel whose slot was taken, nil if ctx ended.
func (j *job) slot(ctx context.Context, first, whole chan struct{}) (taken chan struct{}) {
	select {
	case first <- struct{}{}:
		return first
	case <-j.here:
	case <-ctx.Done():
		return nil
	}
	select {
	case first <- struct{}{}:
		return first
	case whole <- struct{}{}:
		return whole
	case <-ctx.Done():
		return nil
	}
}

// observed calls unpack, catches its panics and tells the observer.
func (u *unpacks) observed(ctx context.Context, r request, got *unpacked) error {
	blob := r.pair.Blob
	source := "blob"
	if _, here := u.s.blobs.Size(blob.Digest); !here {
		source = "download"
	}
	ctx, end := observe.Begin(ctx, u.s.opts.Observe, observe.Event{
		Kind: observe.Unpack, Subject: blob.Digest.String(), Source: source, Bytes: blob.Size,
	})
	err := panics.Call("unpack", func() error { return u.unpack(ctx, r, got) })
	end(observe.Result{Err: err, Bytes: got.record.Size, Count: got.record.Inodes})
	return err
}

// unpack reads the blob to its end and extracts it, or only hashes it if its layer is here. It sets got. After an error
// or a panic the directory in got may exist, and the caller deletes it.
func (u *unpacks) unpack(ctx context.Context, r request, got *unpacked) error {
	blob := r.pair.Blob
	_, here := u.s.blobs.Size(blob.Digest)
	got.followed = !here
	src, err := u.s.blobs.Open(ctx, blob.Digest)
	if err != nil {
		return fmt.Errorf("layer %s: %w", blob.Digest, err)
	}
	defer src.Close()
	mediaType := blob.MediaType
	if r.decode != nil {
		if mediaType, src, err = r.decode(ctx, blob.MediaType, src); err != nil {
			return fmt.Errorf("layer %s: %w", blob.Digest, err)
		}
		defer src.Close()
	}
	have, err := u.hasLayer(r.pair.DiffID)
	if err != nil {
		return err
	}
	digester := digest.SHA256.Digester()
	claim := u.s.memory.Claim(func(ctx context.Context) error { return u.complete(ctx, blob.Digest) })
	defer claim.Release()
	tarOf := func(read func(io.Reader) error) error {
		return tarstream.Read(ctx, mediaType, src, digester.Hash(), claim.Grow, read)
	}
	if have {
		err = tarOf(func(tar io.Reader) error { return interrupt.Copy(ctx, io.Discard, tar) })
	} else {
		got.dir = u.stage(r.pair)
		err = u.s.dir.Build(got.dir, func() (err error) {
			got.record, err = u.extract(ctx, r, got.dir, tarOf, claim, digester)
			return err
		}, nil)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", blob.Digest, err)
	}
	got.diffID = digester.Digest()
	return nil
}

// stage returns the staged name of a layer's directory.
func (u *unpacks) stage(p Pair) string {
	name := p.DiffID
	if name == "" {
		name = p.Blob.Digest
	}
	return u.s.dir.Stage(rootdir.Layers, "layer-"+name.Encoded()[:12])
}

// complete returns when the whole blob is here. Until then the speed of an extraction depends on a
// registry, and it must not hold the memory that only one extraction at a time may have.
func (u *unpacks) complete(ctx context.Context, d digest.Digest) error {
	if _, here := u.s.blobs.Size(d); here {
		return nil
	}
	blob, err := u.s.blobs.Open(ctx, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	defer context.AfterFunc(ctx, func() { blob.Close() })()
	return interrupt.Copy(ctx, io.Discard, blob)
}

// hasLayer reports whether a layer with this diff ID is recorded.
func (u *unpacks) hasLayer(diffID digest.Digest) (have bool, err error) {
	if diffID == "" {
		return false, nil
	}
	err = u.s.db.ViewPending(func(tx *metadata.Tx) error {
		switch _, err := tx.Layer(metadata.LayerKey(diffID)); {
		case err == nil:
			have = true
			return nil
		case errdefs.IsNotFound(err):
			return nil
		default:
			return err
		}
	})
	return have, err
}

// extract unpacks a layer into the new directory staged and seals it. digester has the diff ID when tarOf returns.
func (u *unpacks) extract(ctx context.Context, r request, staged string, tarOf func(func(io.Reader) error) error,
	claim *budget.Claim, digester digest.Digester,
) (rec metadata.Layer, err error) {
	fs := filepath.Join(staged, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return rec, err
	}
	dir, err := os.Open(fs)
	if err != nil {
		return rec, err
	}
	defer dir.Close()
	opts := u.s.opts.Unpack
	if r.descriptors > 0 {
		opts.Descriptors = int(r.descriptors) - 4 // less those of the directory, the blob and the seal
	}
	var res *unpack.Result
	opts.Memory, opts.Room = claim.Grow, diskspace.NewMeter(staged).Take
	aside := filepath.Join(staged, tree.AsideName)
	setAside := false
	opts.Aside = func() (*os.File, error) {
		setAside = true
		if err := os.Mkdir(aside, 0o700); err != nil {
			return nil, err
		}
		return os.Open(aside)
	}
	err = tarOf(func(tar io.Reader) error {
		res, err = unpack.Extract(ctx, dir, tar, &opts)
		return err
	})
	if err != nil {
		return rec, nodes.Classed(err)
	}
	rec = metadata.Layer{
		Size: res.Size, Inodes: res.Inodes, Created: time.Now().UTC(),
		Empty: res.Empty && !res.Whiteouts, HasRootEntry: res.HasRootEntry, NeedsFixup: res.NeedsFixup,
		Whiteouts: res.Whiteouts, PlainMarks: res.PlainMarks,
		Ordered: res.Ordered, OpaqueRoot: res.OpaqueRoot, DroppedXattrs: nodes.DroppedText(res.DroppedXattrs),
		DiffID: digester.Digest(),
	}
	rec.Key = metadata.LayerKey(rec.DiffID)
	switch {
	case res.Ordered:
		err = tree.WriteOrder(staged, &res.Result)
	case setAside:
		err = nodes.RemoveAll(ctx, aside, nil)
	}
	if err != nil {
		return rec, nodes.Classed(err)
	}
	interrupted := interrupt.Every(ctx)
	return rec, nodes.Classed(
		tree.WriteSeal(filepath.Join(staged, "seal"), rec, res.Count, func(visit func(*entry.Entry) error) error {
			return res.Each(func(e *entry.Entry) error {
				if err := interrupted(); err != nil {
					return err
				}
				return visit(e)
			})
		}, true))
}

// finished lists the jobs that have ended.
func (u *unpacks) finished() (jobs []*job) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, j := range u.jobs {
		select {
		case <-j.done:
			jobs = append(jobs, j)
		default:
		}
	}
	return jobs
}
