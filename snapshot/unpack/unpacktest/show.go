package unpacktest

import (
	"archive/tar"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// String returns the Go expression that makes the item.
func (i Item) String() string {
	h := i.Header
	var text string
	mode := int64(0o644)
	switch h.Typeflag {
	case tar.TypeDir:
		text, mode = fmt.Sprintf("D(%q)", h.Name), 0o755
	case tar.TypeSymlink:
		text, mode = fmt.Sprintf("S(%q, %q)", h.Name, h.Linkname), 0o777
	case tar.TypeLink:
		text = fmt.Sprintf("H(%q, %q)", h.Name, h.Linkname)
	case tar.TypeReg:
		text = fmt.Sprintf("F(%q, %q)", h.Name, i.Body)
		if strings.HasPrefix(filepath.Base(h.Name), ".wh.") {
			text = fmt.Sprintf("W(%q)", h.Name)
		}
	case tar.TypeFifo:
		text = fmt.Sprintf("P(%q)", h.Name)
	case tar.TypeChar:
		text = fmt.Sprintf("C(%q, %d, %d)", h.Name, h.Devmajor, h.Devminor)
	case tar.TypeBlock:
		text = fmt.Sprintf("B(%q, %d, %d)", h.Name, h.Devmajor, h.Devminor)
	}
	if h.Mode != mode {
		text += fmt.Sprintf(".Mode(%#o)", h.Mode)
	}
	if h.Uid != 0 || h.Gid != 0 {
		text += fmt.Sprintf(".Owner(%d, %d)", h.Uid, h.Gid)
	}
	if h.ModTime.UnixNano() != Time*1e9 {
		text += fmt.Sprintf(".At(%d, %d)", h.ModTime.Unix(), h.ModTime.Nanosecond())
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		text += fmt.Sprintf(".Xattr(%q, %q)", strings.TrimPrefix(k, "SCHILY.xattr."), h.PAXRecords[k])
	}
	return text
}
