package ocilayout

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/printable"
)

// annotationEntry marks those entries of index.json that Tank wrote: its value is the entry's
// reference, a space and its digest. A program that copies the annotation to an entry of its own
// gives that another reference or digest.
const annotationEntry = "io.github.tank-snapshotter.entry"

// annotationMarked is an annotation of index.json itself: all of Tank's entries in the file are
// marked.
const annotationMarked = "io.github.tank-snapshotter.marked"

// indexFile is index.json. E is the type of its entries: json.RawMessage when the file is read, any
// when it is written.
type indexFile[E any] struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	Manifests     []E               `json:"manifests"`
}

// foreignEntry reports whether an entry of index.json is another program's, and returns it as Tank
// keeps it: without its name, if that is the name of an image that Tank has. refs are the names of
// these images.
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

func ownEntry(i Image) ocispec.Descriptor {
	d := i.Target
	d.Annotations = map[string]string{
		ocispec.AnnotationRefName: i.Ref, annotationEntry: i.Ref + " " + i.Target.Digest.String(),
	}
	return d
}

// isOwn reports whether Tank wrote an entry of index.json. A program that gives the name to an
// entry of its own takes it from Tank's, which stays Tank's.
func isOwn(d ocispec.Descriptor) bool {
	ref, target, ok := strings.Cut(d.Annotations[annotationEntry], " ")
	name := d.Annotations[ocispec.AnnotationRefName]
	return ok && target == d.Digest.String() && (name == "" || name == ref)
}

// entryRef returns the reference for which Tank wrote an entry.
func entryRef(d ocispec.Descriptor) string {
	ref, _, _ := strings.Cut(d.Annotations[annotationEntry], " ")
	return ref
}

// maxIndex is the maximum size of index.json in bytes. An image takes some 500 bytes of it.
const maxIndex = 64 << 20

// listBegins matches the beginning of the list of entries, however a program formats JSON.
var listBegins = regexp.MustCompile(`"manifests"\s*:\s*\[`)

// parseIndex parses index.json. With an error it returns the entries that could be parsed.
func parseIndex(b []byte) (file indexFile[json.RawMessage], err error) {
	if err = json.Unmarshal(b, &file); err == nil || len(file.Manifests) > 0 { // or another member has a wrong type
		return file, err
	}
	// In a file that was cut, what comes before the cut is right.
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
