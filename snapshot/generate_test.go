package snapshot_test

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// modelTime is how long TestModel may run; modelSeeds are the first of its lists and how many it takes at most. The environment
// asks for longer runs.
func modelTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TANK_MODEL_TIME")); err == nil {
		return d
	}
	return 20 * time.Second
}

func modelSeeds() (first, count uint64) {
	if _, err := fmt.Sscanf(os.Getenv("TANK_MODEL_SEEDS"), "%d,%d", &first, &count); err == nil {
		return first, count
	}
	return 1, 350
}

func names(sn *snapshot.Snapshotter) (list []string, err error) {
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		list = append(list, i.Name)
		return nil
	})
	return list, err
}

// plain is the item with nothing special.
func plain(i Item) Item {
	n, l := i.Header.Name, i.Header.Linkname
	switch i.Header.Typeflag {
	case tar.TypeDir:
		return D(n)
	case tar.TypeSymlink:
		return S(n, l)
	case tar.TypeLink:
		return H(n, l)
	case tar.TypeReg:
		return F(n, i.Body)
	}
	return P(n)
}

// program shows layers as a row of a table has them.
func program(lists [][]Item) string {
	var text []string
	for _, items := range lists {
		var parts []string
		for _, i := range items {
			parts = append(parts, show1(i))
		}
		text = append(text, "\t{"+strings.Join(parts, ", ")+"},\n")
	}
	return "[][]Item{\n" + strings.Join(text, "") + "}\n"
}

func show1(i Item) string {
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
	for k, v := range h.PAXRecords {
		text += fmt.Sprintf(".Xattr(%q, %q)", strings.TrimPrefix(k, "SCHILY.xattr."), v)
	}
	return text
}
