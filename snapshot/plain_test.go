package snapshot_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/rootdir"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// overlayFS mounts an overlay file system, like that of a container's root, until the test ends. It
// refuses the device nodes that are overlay's whiteouts.
func overlayFS(t *testing.T) string {
	t.Helper()
	base := memoryFS(t, "256m")
	at := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(at(name), 0o755))
	}
	must(t, unix.Mount("overlay", at("merged"), "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))))
	t.Cleanup(func() { must(t, unix.Unmount(at("merged"), 0)) })
	return at("merged")
}

// noXattrs mounts a file system without extended attributes until the test ends.
func noXattrs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("ramfs", dir, "ramfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// TestPlain merges every row on file systems that refuse overlay's whiteouts or attributes: copied,
// moved, and as a container in directory mode.
func TestPlain(t *testing.T) {
	requireMounts(t)
	for kind, dir := range map[string]string{"overlay": overlayFS(t), "no attributes": noXattrs(t)} {
		for i, row := range slices.Concat(stackRows, entryRows) {
			t.Run(kind+"/"+row.testName, func(t *testing.T) {
				if kind == "no attributes" {
					row.want = withoutXattrs(row.want)
				}
				for _, consume := range []bool{false, true} {
					root := filepath.Join(dir, fmt.Sprint(i, consume))
					must(t, os.Mkdir(root, 0o700))
					w := openDirectory(t, root, memory{})
					var recs []metadata.Layer
					var layers []layer.Pair
					var err error
					for _, items := range row.layers {
						l := w.blobs.add(t, Tar(t, items...))
						layers = append(layers, l)
						rec, uerr := w.Layers().Unpack(ctx, holder, l)
						err = errors.Join(err, uerr)
						recs = append(recs, rec)
					}
					if !consume && err == nil && row.wantErr == nil {
						got, err := prepared(t, w, layers, "container")
						compare(t, got, err, underContainerd(row.want), nil)
					}
					path := ""
					if err == nil {
						opts := &layer.AssembleOptions{Consume: consume, NoSync: true}
						path, err = w.Layers().Assemble(ctx, holder, digest.FromString("m"), recs, opts)
					}
					if err != nil {
						compare(t, row.want, err, row.want, row.wantErr)
						continue
					}
					compare(t, List(t, path), err, row.want, row.wantErr)
				}
			})
		}
	}
}

var xattrField = regexp.MustCompile(` (?:user|trusted|security|system)\.[^ =]+="(?:[^"\\]|\\.)*"`)

// withoutXattrs removes the extended attributes from lines of List.
func withoutXattrs(lines []string) (out []string) {
	for _, l := range lines {
		out = append(out, xattrField.ReplaceAllString(l, ""))
	}
	return out
}

// TestPlainElsewhere copies a root from overlayfs to another file system. Overlay does not
// understand the whiteouts of such a root, so its layers are unpacked again before they are
// mounted. On overlayfs itself nothing can be mounted.
func TestPlainElsewhere(t *testing.T) {
	requireMounts(t)
	w := openAt(t, overlayFS(t), memory{})
	var layers []layer.Pair
	for _, items := range [][]Item{
		{D("d").Mode(0o700), F("d/x", "1"), F("gone", "1"), D("o"), F("o/f", "1")},
		{W(".wh.gone"), W("d/.wh.x"), F("d/new", "2"), W("o/.wh..wh..opq"), F("o/g", "2")},
	} {
		layers = append(layers, w.blobs.add(t, Tar(t, items...)))
	}
	want := []string{"d dir 0700", `d/new file "2"`, "o dir", `o/g file "2"`}
	if _, err := mounted(t, w, layers, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounts of a root on overlayfs: %v", err)
	}
	root, blobs := w.root, w.blobs
	must(t, w.close())
	moved := filepath.Join(memoryDir(t), "root")
	if out, err := exec.Command("cp", "-a", root, moved).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	w = openAt(t, moved, blobs)
	t.Run("elsewhere", func(t *testing.T) {
		got, err := mounted(t, w, layers, false)
		compare(t, got, err, want, nil)
	})
	must(t, filepath.WalkDir(moved, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() && rootdir.IsStaged(e.Name()) {
			return fs.SkipDir // being deleted
		}
		if err == nil && e.Type()&fs.ModeSocket != 0 {
			t.Errorf("%s: a socket is left", path)
		}
		return err
	}))
}
