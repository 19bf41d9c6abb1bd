package tank

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/metadata"
)

// annotationEntry marks those entries of index.json that Tank wrote: its value is the entry's reference, a space and
// its digest. A program that copies the annotation to an entry of its own gives that another reference or digest.
const annotationEntry = "io.github.tank-snapshotter.entry"

// annotationMarked is an annotation of index.json itself: all of Tank's entries in the file are marked.
const annotationMarked = "io.github.tank-snapshotter.marked"

// indexFile is index.json, with entries of the type E: as they are read, or as they are written.
type indexFile[E any] struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	Manifests     []E               `json:"manifests"`
}

// indexState is index.json as it was when Tank wrote or compared it last.
type indexState struct {
	info   os.FileInfo // nil: it was not looked at yet
	others bool        // it has entries of other programs
}

// writeLayout writes oci-layout and index.json, so that the root is an OCI image layout of the pulled references.
// Entries that other programs added to index.json stay in it.
func (t *Tank) writeLayout() error {
	t.layout.Lock()
	defer t.layout.Unlock()
	images, err := t.records()
	if err != nil {
		return err
	}
	b, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err == nil {
		err = replaceIfOther(filepath.Join(t.root, ocispec.ImageLayoutFile), b)
	}
	if err == nil {
		err = t.writeIndex(images)
	}
	if err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	return nil
}

// indexSettles is how long an index.json that cannot be read may take to become readable.
const indexSettles = 100 * time.Millisecond

// maxLayout bounds what is read of index.json: an image takes some 500 bytes of it.
const maxLayout = 64 << 20

// replaceIfOther replaces a file of the root, if its content differs. It is not synced: the next opening of the root
// writes it again from the records. What is not a regular file of bounded size is an error: Tank did not write it.
func replaceIfOther(path string, b []byte) error {
	old, err := regular.ReadFile(path, maxLayout)
	if err == nil && bytes.Equal(old, b) {
		return nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = replaceFile(path, b)
	}
	return err
}

// writeIndex writes index.json if it differs from the records: Tank's entries first, then those of other programs. It
// is not synced either. t.layout is held.
func (t *Tank) writeIndex(images []metadata.Image) error {
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
	path := filepath.Join(t.root, ocispec.ImageIndexFile)
	old, err := regular.ReadFile(path, maxLayout)
	others := 0
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case bytes.Equal(old, b):
		return t.sawIndex(path, false)
	default:
		if others, err = t.addOthers(&file, old, images); err != nil {
			return err
		}
	}
	if others > 0 {
		if b, err = json.Marshal(file); err != nil {
			return err
		}
	}
	if others == 0 || !bytes.Equal(old, b) {
		if err := replaceFile(path, b); err != nil {
			return err
		}
	}
	return t.sawIndex(path, others > 0)
}

func ownEntry(i metadata.Image) ocispec.Descriptor {
	d := i.Target
	d.Annotations = map[string]string{
		ocispec.AnnotationRefName: i.Ref, annotationEntry: i.Ref + " " + i.Target.Digest.String(),
	}
	return d
}

// sawIndex remembers index.json, so that a sweep reads it only if it has changed or has entries of other programs.
func (t *Tank) sawIndex(path string, others bool) error {
	fi, err := os.Lstat(path)
	t.index = indexState{fi, others}
	return err
}

// addOthers adds the entries and annotations of other programs in index.json to what Tank will write there, and returns
// how many there are. A copy of a file that cannot be read is kept below lost/.
func (t *Tank) addOthers(file *indexFile[any], old []byte, images []metadata.Image) (n int, err error) {
	was, err := parseIndex(old)
	if err != nil { // another program may be writing it just now, in its place
		time.Sleep(indexSettles)
		if again, rerr := regular.ReadFile(filepath.Join(t.root, ocispec.ImageIndexFile), maxLayout); rerr == nil {
			old = again
			was, err = parseIndex(old)
		}
	}
	if err != nil {
		dir, kerr := keepCopy(t.root, old)
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

// foreignEntry reports whether an entry of index.json is another program's, and returns it as Tank keeps it: without
// its name, if that is the name of an image that Tank has.
func foreignEntry(raw json.RawMessage, refs map[string]digest.Digest) (json.RawMessage, bool) {
	var d ocispec.Descriptor
	if json.Unmarshal(raw, &d) != nil {
		return raw, true
	}
	ref := d.Annotations[ocispec.AnnotationRefName]
	if isOwn(d) {
		return nil, false
	}
	own, taken := refs[ref]
	if !taken {
		return raw, true
	}
	if own == d.Digest { // an older version of Tank wrote it, or the other program has the same image under this name
		return nil, false
	}
	var fields, annotations map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil || json.Unmarshal(fields["annotations"], &annotations) != nil {
		return raw, true
	}
	log.L.Warnf("index.json: %s is %s, which was pulled: the entry of another program for %s stays without that name",
		printable.Text(ref), own, printable.Text(d.Digest.String()))
	delete(annotations, ocispec.AnnotationRefName)
	if len(annotations) == 0 {
		delete(fields, "annotations")
	} else if fields["annotations"], _ = json.Marshal(annotations); fields["annotations"] == nil {
		return raw, true
	}
	without, err := json.Marshal(fields)
	if err != nil {
		return raw, true
	}
	return without, true
}

// isOwn reports whether Tank wrote an entry of index.json. A program that gives the name to an entry of its own takes
// it from Tank's, which stays Tank's.
func isOwn(d ocispec.Descriptor) bool {
	ref, target, ok := strings.Cut(d.Annotations[annotationEntry], " ")
	name := d.Annotations[ocispec.AnnotationRefName]
	return ok && target == d.Digest.String() && (name == "" || name == ref)
}

// readIndex reads index.json, as far as it can be read, and returns its bytes too. The error is os.ErrNotExist for a
// missing file.
func readIndex(root string) (file indexFile[json.RawMessage], b []byte, err error) {
	b, err = regular.ReadFile(filepath.Join(root, ocispec.ImageIndexFile), maxLayout)
	if err == nil {
		file, err = parseIndex(b)
	}
	return file, b, err
}

// listBegins is where the list of entries begins, in whatever layout a program writes JSON.
var listBegins = regexp.MustCompile(`"manifests"\s*:\s*\[`)

// parseIndex reads index.json, as far as it can be read.
func parseIndex(b []byte) (file indexFile[json.RawMessage], err error) {
	if err = json.Unmarshal(b, &file); err == nil || len(file.Manifests) > 0 { // or another member has a wrong type
		return file, err
	}
	// A file that was cut: what comes before the cut is right.
	list := ""
	if at := listBegins.FindIndex(b); at != nil {
		list = string(b[at[1]:])
	}
	d := json.NewDecoder(strings.NewReader("[" + list))
	if _, e := d.Token(); e != nil {
		return indexFile[json.RawMessage]{}, err
	}
	file = indexFile[json.RawMessage]{}
	for d.More() {
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			break
		}
		file.Manifests = append(file.Manifests, raw)
	}
	return file, err
}

// keepCopy keeps a copy of an index.json that cannot be read, and returns its directory. A file without any text has
// nothing to keep.
func keepCopy(root string, b []byte) (dir string, err error) {
	if len(bytes.Trim(b, " \t\r\n\x00")) == 0 {
		return "", nil
	}
	dir = filepath.Join(root, "lost", time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, replaceFile(filepath.Join(dir, ocispec.ImageIndexFile), b)
}
