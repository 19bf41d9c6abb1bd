// Package ocilayout keeps a root an OCI image layout of the pulled images, so that programs such as
// skopeo can read it.
//
// It owns the files oci-layout and index.json of a root.
//
// Its invariant: what another program added to index.json stays there until that program removes
// it. Only the name of such an entry goes, if Tank has pulled an image of that name.
//
// The surprising rule: a file is synced before it takes the place of the old one, but its name is
// not. After a power cut either of the two files may be there, each complete with the entries of
// other programs. The records of images are the truth, and every opening of a root writes the files
// again if they differ from the records.
package ocilayout

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/lockorder"
	"github.com/tank-snapshotter/tank/internal/regular"
)

// Image is an image that was pulled.
type Image struct {
	Ref    string
	Target ocispec.Descriptor // an index or a manifest
}

// Layout is the image layout of one root. Its methods may be called by several goroutines at once.
type Layout struct {
	root string
	fs   fsys.FS

	// mu guards known, and is held while index.json is compared and replaced.
	mu    lockorder.Mutex
	known fileState
}

// fileState is index.json as Tank wrote or compared it last.
type fileState struct {
	info   os.FileInfo // nil: it was not examined yet
	others bool        // it has entries of other programs
}

// New returns the layout of a root. It does not look at the disk. A nil fs is fsys.OS.
func New(root string, fs fsys.FS) *Layout {
	return &Layout{root: root, fs: cmp.Or(fs, fsys.OS), mu: lockorder.Mutex{Rank: lockorder.Index}}
}

func (l *Layout) indexPath() string { return filepath.Join(l.root, ocispec.ImageIndexFile) }

// Write writes oci-layout and index.json, if they differ from what they should be. images returns
// the pulled images. It is called while the layout is locked, so that of several calls the last one
// has the latest images.
func (l *Layout) Write(images func() ([]Image, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known.info == nil {
		l.removeUnfinished()
	}
	pulled, err := images()
	if err != nil {
		return err
	}
	b, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err == nil {
		err = l.replaceIfOther(filepath.Join(l.root, ocispec.ImageLayoutFile), b)
	}
	if err == nil {
		err = l.writeIndex(pulled)
	}
	if err != nil {
		return errclass.Ensure(fmt.Errorf("layout: %w", err))
	}
	return nil
}

// replaceIfOther replaces a file of the root, if its content differs. What is not a regular file of
// bounded size is an error, because Tank did not write it.
func (l *Layout) replaceIfOther(path string, b []byte) error {
	old, err := regular.ReadFile(path, maxIndex)
	if err == nil && bytes.Equal(old, b) {
		return nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = l.replace(path, b)
	}
	return err
}

// unfinished ends the name of a file that is going to take the place of another one.
const unfinished = ".new"

// removeUnfinished removes what a process left that was writing a file when it ended. What can't be
// removed is left for the next opening of the root.
func (l *Layout) removeUnfinished() {
	for _, name := range []string{ocispec.ImageIndexFile, ocispec.ImageLayoutFile} {
		path := filepath.Join(l.root, name+unfinished)
		if _, err := os.Lstat(path); err == nil {
			_ = l.fs.Remove(path)
		}
	}
}

// replace writes a new file beside path and renames it. Nobody else uses that name, and what a
// killed process left there is removed first, so nothing is followed or overwritten.
func (l *Layout) replace(path string, b []byte) error {
	temporary := path + unfinished
	if err := l.fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := l.fs.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.fs.Rename(temporary, path)
	}
	if err != nil {
		_ = l.fs.Remove(temporary)
	}
	return err
}

// writeIndex writes index.json if it differs from the records: Tank's entries first, then those of
// other programs. mu is held.
func (l *Layout) writeIndex(images []Image) error {
	file := indexFile[any]{
		SchemaVersion: 2, MediaType: ocispec.MediaTypeImageIndex, Annotations: map[string]string{annotationMarked: "1"},
		Manifests: make([]any, 0, len(images)),
	}
	for _, i := range images {
		file.Manifests = append(file.Manifests, ownEntry(i))
	}
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	old, err := regular.ReadFile(l.indexPath(), maxIndex)
	others := 0
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case bytes.Equal(old, b):
		return l.remember(false)
	default:
		if others, err = l.addOthers(&file, old, images); err != nil {
			return err
		}
	}
	if others > 0 {
		if b, err = json.Marshal(file); err != nil {
			return err
		}
	}
	if others == 0 || !bytes.Equal(old, b) {
		if err := l.replace(l.indexPath(), b); err != nil {
			return err
		}
	}
	return l.remember(others > 0)
}

// remember keeps the state of index.json, so that ForeignBlobs reads the file only if it has
// changed or has entries of other programs. mu is held.
func (l *Layout) remember(others bool) error {
	fi, err := os.Lstat(l.indexPath())
	l.known = fileState{fi, others}
	return err
}

// settleTime is how long an index.json that can't be read may take to become readable: another
// program may be writing it in place.
const settleTime = 100 * time.Millisecond

// addOthers adds the entries and annotations of other programs in index.json to what Tank will
// write there, and returns how many there are. A copy of a file that can't be read is kept below
// lost/.
func (l *Layout) addOthers(file *indexFile[any], old []byte, images []Image) (n int, err error) {
	was, err := parseIndex(old)
	if err != nil {
		time.Sleep(settleTime)
		if again, rerr := regular.ReadFile(l.indexPath(), maxIndex); rerr == nil {
			old = again
			was, err = parseIndex(old)
		}
	}
	if err != nil {
		dir, kerr := l.keepUnreadable(old)
		if kerr != nil {
			return 0, kerr
		}
		log.L.WithError(err).Warnf("index.json cannot be read: it is written again, and a copy is in %s", dir)
	}
	for name, value := range was.Annotations {
		if name != annotationMarked {
			file.Annotations[name] = value
			n++
		}
	}
	refs := map[string]digest.Digest{}
	for _, i := range images {
		refs[i.Ref] = i.Target.Digest
	}
	for _, raw := range was.Manifests {
		raw, foreign := foreignEntry(raw, refs)
		if foreign {
			file.Manifests = append(file.Manifests, raw)
			n++
		}
	}
	return n, nil
}

// keepUnreadable keeps a copy of an index.json that can't be read, and returns its directory. A
// file without any text has nothing to keep.
func (l *Layout) keepUnreadable(b []byte) (dir string, err error) {
	if len(bytes.Trim(b, " \t\r\n\x00")) == 0 {
		return "", nil
	}
	dir = filepath.Join(l.root, "lost", time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, l.replace(filepath.Join(dir, ocispec.ImageIndexFile), b)
}

// read reads index.json and returns its bytes too. It returns os.ErrNotExist for a missing file,
// and the entries that could be read with an error of another kind.
func (l *Layout) read() (file indexFile[json.RawMessage], b []byte, err error) {
	b, err = regular.ReadFile(l.indexPath(), maxIndex)
	if err == nil {
		file, err = parseIndex(b)
	}
	return file, b, err
}

// Empty reports whether index.json is missing or has no entry. A file that can't be read is not
// empty.
func (l *Layout) Empty() bool {
	file, _, err := l.read()
	return errors.Is(err, os.ErrNotExist) || err == nil && len(file.Manifests) == 0
}

// Images returns the descriptors of Tank's entries in index.json, with their names as annotations.
// Other programs may call an image what they like, so their entries are no record of a pull. It
// returns os.ErrNotExist for a missing file, and the entries that can be read with an error of
// another kind.
func (l *Layout) Images() (own []ocispec.Descriptor, err error) {
	file, b, err := l.read()
	// Versions of Tank that marked nothing kept nothing of other programs either.
	marked := bytes.Contains(b, []byte(annotationMarked)) || bytes.Contains(b, []byte(annotationEntry))
	for _, raw := range file.Manifests {
		var d ocispec.Descriptor
		switch {
		case json.Unmarshal(raw, &d) != nil:
		case isOwn(d):
			// another program may have taken its name
			d.Annotations = map[string]string{ocispec.AnnotationRefName: entryRef(d)}
			own = append(own, d)
		case !marked:
			own = append(own, d)
		}
	}
	return own, err
}

// Text returns the content of index.json; nil if it is not a regular file of bounded size, or
// empty.
func (l *Layout) Text() []byte {
	b, err := regular.ReadFile(l.indexPath(), maxIndex)
	if err != nil || len(b) == 0 {
		return nil
	}
	return b
}

// WriteText writes the content of an index.json into a directory, which exists.
func (l *Layout) WriteText(dir string, b []byte) error {
	return errclass.Ensure(l.replace(filepath.Join(dir, ocispec.ImageIndexFile), b))
}

// Remove removes index.json, whatever it is: Write refuses to replace what is not a regular file of
// bounded size.
func (l *Layout) Remove() error {
	return l.fs.RemoveTree(l.indexPath(), func() error { return os.RemoveAll(l.indexPath()) })
}
