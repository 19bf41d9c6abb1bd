package rebuild

import (
	"context"
	"slices"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/internal/catalog"
	"github.com/tank-snapshotter/tank/metadata"
)

// plan has the records that a rebuild writes. If the former database was complete, they are the former
// records, and files without a record stay garbage. Otherwise everything that is intact gets a record and
// a holder.
type plan struct {
	*rebuild
	here map[digest.Digest]bool // blobs that are intact

	recorded  map[digest.Digest]metadata.Blob
	layers    map[string]metadata.Layer
	rootfs    map[digest.Digest]metadata.Rootfs
	snapshots map[string]metadata.Snapshot
	images    map[string]metadata.Image
	holds     map[metadata.Hold]bool
	set       *blobSet

	ordered                   []metadata.Snapshot // parents first
	lostSnapshots, lostLayers []string            // names of directories that get no record
}

func newPlan(r *rebuild) *plan {
	return &plan{
		rebuild: r, here: map[digest.Digest]bool{},
		recorded: map[digest.Digest]metadata.Blob{}, layers: map[string]metadata.Layer{},
		rootfs:    map[digest.Digest]metadata.Rootfs{},
		snapshots: map[string]metadata.Snapshot{}, images: map[string]metadata.Image{}, holds: map[metadata.Hold]bool{},
	}
}

func (p *plan) fill(ctx context.Context) {
	p.fillBlobs()
	p.fillLayers()
	p.fillSnapshots(ctx)
	p.fillRootfs()
	p.set = newBlobSet(p.root, p.blobs.Blobs, p.rootfs)
	p.fillImages(ctx)
	p.fillHolds(ctx)
	p.found.Images, p.found.Layers, p.found.Snapshots = len(p.images), len(p.layers), len(p.snapshots)
	for d := range p.recorded {
		if p.here[d] {
			p.found.Blobs++
		}
	}
}

func (p *plan) fillBlobs() {
	for _, b := range p.blobs.Blobs {
		p.here[b.Digest] = true
		if !p.old.Complete {
			p.recorded[b.Digest] = b
		}
	}
	for _, b := range p.old.Blobs {
		if now, intact := p.recorded[b.Digest]; intact {
			b.Size = now.Size
		}
		if p.old.Complete || p.here[b.Digest] {
			p.recorded[b.Digest] = b
		}
	}
}

func (p *plan) fillLayers() {
	sealed := map[string]metadata.Layer{} // by name of the directory
	for _, l := range p.dirs.Layers {
		sealed[l.Dir] = l
	}
	taken := map[string]bool{}
	for _, l := range p.old.Layers {
		intact, ok := sealed[l.Dir]
		broken := slices.Contains(p.dirs.BrokenLayers, l.Dir)
		switch {
		case taken[l.Dir], ok && intact.Key != l.Key: // one of the records is damaged
			continue
		case !p.old.Complete && !ok && !broken: // the directory is missing
			continue
		}
		l.Durable = ok
		p.layers[l.Key], taken[l.Dir] = l, true
	}
	if p.old.Complete {
		return
	}
	for _, l := range p.dirs.Layers {
		if _, known := p.layers[l.Key]; !known && !taken[l.Dir] && l.DiffID != "" {
			l.Durable = true
			p.layers[l.Key], taken[l.Dir] = l, true
		}
	}
}

// fillSnapshots keeps the snapshots whose directory, layers and parents are known. All other directories of
// snapshots are lost: run moves them below lost/, with what containers wrote into them. So are broken layers
// that no snapshot needs; a pull unpacks them again.
func (p *plan) fillSnapshots(ctx context.Context) {
	dirs := map[string]string{}
	for _, s := range p.old.Snapshots {
		if other, twice := dirs[s.Dir]; twice && s.Dir != "" && !p.old.Complete {
			log.G(ctx).Warnf("rebuild: snapshots %q and %q have the same directory", s.Key, other)
			delete(p.snapshots, other)
			continue
		}
		dirs[s.Dir] = s.Key
		if _, known := p.layers[s.Fixup]; !known && s.Fixup != metadata.NoFixup && !p.old.Complete {
			s.Fixup = "" // it is planned and built again
		}
		p.snapshots[s.Key] = s
	}
	p.order(ctx)
	if p.old.Complete {
		return
	}
	needed, named := map[string]bool{}, map[string]bool{}
	for _, s := range p.snapshots {
		named[s.Entry()] = true
		for _, l := range layersUnder(s) {
			needed[l] = true
		}
	}
	p.lostSnapshots = slices.DeleteFunc(slices.Clone(p.dirs.Snapshots), func(name string) bool { return named[name] })
	layerDirs := map[string]bool{}
	for key, l := range p.layers {
		if !l.Durable && !needed[key] {
			delete(p.layers, key)
			continue
		}
		layerDirs[l.Dir] = true
	}
	for _, l := range p.dirs.Layers {
		if !layerDirs[l.Dir] {
			p.lostLayers = append(p.lostLayers, l.Dir)
		}
	}
	for _, name := range p.dirs.BrokenLayers {
		if !layerDirs[name] {
			p.lostLayers = append(p.lostLayers, name)
		}
	}
}

// order sorts the snapshots, parents first. It leaves out those whose directory, layers or parent are not known.
func (p *plan) order(ctx context.Context) {
	placed := map[string]bool{"": true}
	for again := true; again; {
		again = false
		for key, s := range p.snapshots {
			if !placed[key] && placed[s.Parent] && (p.old.Complete || p.isIntact(s)) {
				placed[key], again = true, true
				p.ordered = append(p.ordered, s)
			}
		}
	}
	for key := range p.snapshots {
		if !placed[key] {
			log.G(ctx).Warnf("rebuild: snapshot %q can't be recorded again", key)
			delete(p.snapshots, key)
		}
	}
}

// isIntact reports whether the directory and all layers and fix-ups of a snapshot are known.
func (p *plan) isIntact(s metadata.Snapshot) bool {
	if s.Entry() != "" && !slices.Contains(p.dirs.Snapshots, s.Entry()) {
		return false
	}
	return !slices.ContainsFunc(layersUnder(s), func(key string) bool { _, ok := p.layers[key]; return !ok })
}

// layersUnder returns the keys of the layers and fix-ups that a snapshot holds.
func layersUnder(s metadata.Snapshot) []string {
	none := func(key string) bool { return key == "" || key == metadata.NoFixup }
	return slices.DeleteFunc([]string{s.Layer, s.Fixup, s.ViewRoot}, none)
}

// fillRootfs also records a rootfs that differs from its seal: before its next use, it is compared with the
// seal and then assembled again.
func (p *plan) fillRootfs() {
	intact := map[digest.Digest]bool{}
	for _, f := range p.dirs.Rootfs {
		intact[f.Manifest] = true
		f.Durable = true
		if !p.old.Complete {
			p.rootfs[f.Manifest] = f
		}
	}
	if !p.old.Complete {
		for _, d := range p.dirs.BrokenRootfs {
			p.rootfs[d] = metadata.Rootfs{Manifest: d, Created: time.Now().UTC()}
		}
	}
	for _, f := range p.old.Rootfs {
		if _, there := p.rootfs[f.Manifest]; there || p.old.Complete {
			f.Durable = intact[f.Manifest]
			p.rootfs[f.Manifest] = f
		}
	}
	for d := range p.rootfs {
		if intact[d] {
			p.found.Rootfs++
		}
	}
}

func (p *plan) fillImages(ctx context.Context) {
	for _, i := range p.old.Images {
		if p.old.Complete || p.anythingLeft(i) {
			p.images[i.Ref] = i
		}
	}
	if !p.old.Complete {
		for _, d := range p.index {
			if i, ok := p.set.image(ctx, d); ok {
				if _, known := p.images[i.Ref]; !known {
					p.images[i.Ref] = i
				}
			}
		}
	}
	for ref, i := range p.images {
		i.Platforms = slices.Clone(i.Platforms)
		for n, c := range i.Platforms {
			_, there := p.rootfs[c.Manifest.Digest]
			i.Platforms[n].Rootfs = c.Rootfs && there
		}
		p.images[ref] = i
		// A blob that is missing or damaged keeps its record: `check` reports it, and a pull fetches it again.
		for _, d := range catalog.Blobs(i) {
			if _, ok := p.recorded[d.Digest]; !ok {
				now := time.Now().UTC()
				p.recorded[d.Digest] = metadata.Blob{Digest: d.Digest, Size: d.Size, Created: now, Updated: now}
			}
		}
	}
}

// anythingLeft reports whether the root has an intact blob or a rootfs of an image.
func (p *plan) anythingLeft(i metadata.Image) bool {
	for _, c := range i.Platforms {
		if _, ok := p.rootfs[c.Manifest.Digest]; ok {
			return true
		}
	}
	for _, d := range catalog.Blobs(i) {
		if p.here[d.Digest] {
			return true
		}
	}
	return false
}

// fillHolds gives each record the holders that it had and the images and snapshots that need it.
func (p *plan) fillHolds(ctx context.Context) {
	for _, h := range p.old.Holds {
		if p.hasNode(h.Node) && p.hasHolder(h.Holder) {
			p.holds[h] = true
		}
	}
	for _, i := range p.images {
		p.holdImage(i)
		for _, d := range p.set.indexes(ctx, i.Target) {
			if n := metadata.BlobNode(d); p.hasNode(n) {
				p.hold(metadata.ImageHolder(i.Ref), n)
			}
		}
	}
	for key, s := range p.snapshots {
		for _, l := range layersUnder(s) {
			p.hold(metadata.SnapshotHolder(key), metadata.LayerNode(l))
		}
	}
	p.keepUnheld(ctx)
	p.holdForContainerds()
}

func (p *plan) hold(h metadata.Holder, n metadata.Node) {
	p.holds[metadata.Hold{Holder: h, Node: n}] = true
}

// keepUnheld gives each record without a holder one that a user can see and release, or that lapses.
func (p *plan) keepUnheld(ctx context.Context) {
	held := map[metadata.Node]bool{}
	for h := range p.holds {
		held[h.Node] = true
	}
	rest := Holder
	if p.named {
		rest = metadata.PullHolder(unfinished)
	}
	keep := func(h metadata.Holder, n metadata.Node) {
		if held[n] {
			return
		}
		if p.hold(h, n); p.found.Kept == "" || n.Kind == metadata.KindBlob {
			p.found.Kept = string(h)
		}
		if h == metadata.PullHolder(unfinished) && !p.hasHolder(h) {
			p.old.Pulls = append(p.old.Pulls, metadata.Pull{Ref: unfinished, Renewed: time.Now().UTC()})
		}
		log.G(ctx).Debugf("rebuild: %s %s is kept for %s", n.Kind, n.Key, h)
	}
	for d := range p.recorded {
		if p.daemon { // a containerd deletes the blobs that it does not know
			keep(metadata.Containerd, metadata.BlobNode(d))
		} else {
			keep(rest, metadata.BlobNode(d))
		}
	}
	for key := range p.layers {
		keep(rest, metadata.LayerNode(key))
	}
	for d := range p.rootfs {
		keep(rest, metadata.RootfsNode(d))
	}
	for key := range p.snapshots {
		keep(metadata.Containerd, metadata.SnapshotNode(key))
	}
}

// holdForContainerds has each containerd of a daemon's root hold every blob, if the holds are not all known. Its next
// collection gives up those that it does not know. Only bindings tell one containerd from another, so the first
// one is the containerd of a root without bindings.
func (p *plan) holdForContainerds() {
	if !p.daemon || p.old.AllHolds {
		return
	}
	all := p.old.Containerds()
	if len(all) == 0 {
		all = []metadata.Holder{metadata.Containerd}
	}
	for d := range p.recorded {
		for _, h := range all {
			if p.here[d] {
				p.hold(h, metadata.BlobNode(d))
			}
		}
	}
}

func (p *plan) holdImage(i metadata.Image) {
	h := metadata.ImageHolder(i.Ref)
	for _, d := range catalog.Blobs(i) {
		p.holds[metadata.Hold{Holder: h, Node: metadata.BlobNode(d.Digest)}] = true
	}
	for _, c := range i.Platforms {
		if c.Rootfs {
			p.holds[metadata.Hold{Holder: h, Node: metadata.RootfsNode(c.Manifest.Digest)}] = true
		}
		for _, d := range c.DiffIDs {
			n := metadata.LayerNode(metadata.LayerKey(d))
			instead := c.Rootfs && !p.daemon // the rootfs takes the place of its layers
			if p.hasNode(n) && !p.old.Complete && !instead {
				p.holds[metadata.Hold{Holder: h, Node: n}] = true
			}
		}
	}
}

func (p *plan) hasNode(n metadata.Node) (ok bool) {
	switch n.Kind {
	case metadata.KindBlob:
		_, ok = p.recorded[digest.Digest(n.Key)]
	case metadata.KindLayer:
		_, ok = p.layers[n.Key]
	case metadata.KindRootfs:
		_, ok = p.rootfs[digest.Digest(n.Key)]
	case metadata.KindSnapshot:
		_, ok = p.snapshots[n.Key]
	}
	return ok
}

// hasHolder reports whether the image, snapshot or pull that is a holder has a record. Other holders have none.
func (p *plan) hasHolder(h metadata.Holder) (ok bool) {
	kind, name := h.Split()
	switch kind {
	case metadata.HolderImage:
		_, ok = p.images[name]
	case metadata.HolderSnapshot:
		_, ok = p.snapshots[name]
	case metadata.HolderPull:
		ok = slices.ContainsFunc(p.old.Pulls, func(pull metadata.Pull) bool { return pull.Ref == name })
	default:
		ok = true
	}
	return ok
}

// write fills a new database.
func (p *plan) write(tx *metadata.Tx) error {
	if err := tx.SkipIDs(max(p.dirs.LastID, p.old.LastID)); err != nil {
		return err
	}
	for name, value := range p.old.Facts {
		if err := metadata.PutFact(tx, name, value); err != nil {
			return err
		}
	}
	if p.daemon {
		if err := tx.SetFlag(metadata.FlagDaemon, "yes"); err != nil {
			return err
		}
	}
	if err := p.writeNodes(tx); err != nil {
		return err
	}
	for _, pull := range p.old.Pulls {
		if err := metadata.PutPull(tx, pull); err != nil {
			return err
		}
	}
	for _, i := range p.images {
		if err := tx.PutImage(i); err != nil {
			return err
		}
	}
	for h := range p.holds {
		if err := tx.Hold(h.Holder, h.Node); err != nil {
			return err
		}
	}
	if !p.old.Complete { // a wrong pair would make Tank serve a blob as another layer
		return nil
	}
	for blob, diffID := range p.old.Pairs {
		if err := tx.SetVerified(blob, diffID); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) writeNodes(tx *metadata.Tx) error {
	for _, b := range p.recorded {
		if err := tx.PutBlob(b); err != nil {
			return err
		}
	}
	for _, l := range p.layers {
		if err := tx.PutLayer(l); err != nil {
			return err
		}
	}
	for _, f := range p.rootfs {
		if err := tx.PutRootfs(f); err != nil {
			return err
		}
	}
	for _, s := range p.ordered {
		if err := tx.PutSnapshot(s); err != nil {
			return err
		}
	}
	return nil
}
