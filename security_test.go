package tank_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// decompressors are programs that other tools find in PATH and let decompress what an image brings
// (CVE-2026-41567).
var decompressors = []string{"unpigz", "pigz", "igzip", "gzip", "zstd", "unzstd", "xz", "bzip2"}

// TestImagesRunNothing pulls an image that would like something to happen: its labels and its user
// are those of CVE-2026-53488, CVE-2024-40635 and CVE-2026-46680, its /dev and /etc/passwd are links
// as in CVE-2026-41579 and CVE-2024-9676, and decompressors are both in the image and in PATH. Tank
// hands out all of it as it is, and runs and follows nothing.
func TestImagesRunNothing(t *testing.T) {
	requireRoot(t)
	canary, path := filepath.Join(t.TempDir(), "canary"), t.TempDir()
	for _, name := range decompressors {
		must(t, os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\necho "+name+" >> "+canary+"\n"), 0o755))
	}
	t.Setenv("PATH", path)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.Mkdir(outside, 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "ptmx"), []byte("host"), 0o600))

	reg := registrytest.New(t)
	tars := [][]byte{
		Tar(t, D("usr/bin"), F("usr/bin/unpigz", "#!/bin/sh\n"), S("dev", outside), S("etc/passwd", outside+"/ptmx")),
		Tar(t, W("dev/.wh.ptmx"), F("dev/null", "not a device")),
	}
	var blobs []ocispec.Descriptor
	var ids []digest.Digest
	for _, tar := range tars {
		blobs = append(blobs, reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, tar)))
		ids = append(ids, digest.FromBytes(tar))
	}
	config := registrytest.JSON(ocispec.Image{
		Platform: platforms.DefaultSpec(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids},
		Config: ocispec.ImageConfig{
			User: "4294967296:4294967297",
			Labels: map[string]string{
				"x": "$(touch " + canary + ")", "io.containerd.runtime.hook": "/bin/sh -c 'touch " + canary + "'",
				"cdi.k8s.io/x": "vendor.com/device=all", "containerd.io/gc.root": "1",
				"containerd.io/snapshot/tank": "../../../../etc",
			},
		},
	})
	reg.Manifest("1", ocispec.MediaTypeImageManifest, registrytest.JSON(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: blobs,
		Config: reg.Blob(ocispec.MediaTypeImageConfig, config),
	}))
	for _, daemon := range []bool{false, true} {
		r := newRoot(t, daemon)
		img, err := r.pull(t, reg.Host+"/x:1", nil)
		must(t, err)
		if string(img.Config) != string(config) {
			t.Errorf("the config is\n%s\nnot\n%s", img.Config, config)
		}
		if target, err := os.Readlink(filepath.Join(img.Rootfs, "dev")); err != nil || target != outside {
			t.Errorf("/dev leads to %q, %v", target, err)
		}
		if text, err := os.ReadFile(filepath.Join(img.Rootfs, outside, "null")); err != nil ||
			string(text) != "not a device" {
			t.Errorf("what lies below /dev: %q, %v", text, err)
		}
	}
	if text, err := os.ReadFile(canary); err == nil {
		t.Errorf("programs were run: %s", text)
	}
	left, err := os.ReadDir(outside)
	must(t, err)
	if len(left) != 1 {
		t.Errorf("outside of the root there are %v", left)
	}
}

// TestRootIsPrivate shows that no other user can get at anything in a root, above all at set-id files
// of images, whatever the umask is (CVE-2021-41091, CVE-2021-41103, CVE-2024-25621).
func TestRootIsPrivate(t *testing.T) {
	requireRoot(t)
	defer unix.Umask(unix.Umask(0))
	reg := registrytest.New(t)
	push(t, reg, "1", []Item{F("su", "1").Mode(0o4755)})
	for _, daemon := range []bool{false, true} {
		r := newRoot(t, daemon)
		_, err := r.pull(t, reg.Host+"/x:1", nil)
		must(t, err)
		if daemon {
			r.with(t, func(tk *tank.Tank) { useSnapshots(t, tk) })
		}
		if fi, err := os.Stat(r.dir); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("the root: %v, %v", fi.Mode(), err)
		}
		must(t, filepath.WalkDir(r.dir, func(path string, e fs.DirEntry, err error) error {
			must(t, err)
			rel, _ := filepath.Rel(r.dir, path)
			if depth := strings.Count(rel, "/"); depth > 1 && !strings.HasPrefix(rel, "blobs") {
				return fs.SkipDir // of an image
			}
			if fi, err := e.Info(); err == nil && fi.Mode().Perm()&0o022 != 0 {
				t.Errorf("%s: others can write to it: %v", rel, fi.Mode())
			}
			return nil
		}))
	}
}
