package containerdconfig

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// unreachableBlobs checks for images in containerd's own content store, which containerd does not read while
// Tank is its content store.
func (k *checker) unreachableBlobs() {
	if !k.in.Content || !k.disabled(pluginContent) {
		return
	}
	blobs := filepath.Join(cmp.Or(k.config.Root, defaultRoot), pluginContent, "blobs")
	some, err := hasFile(blobs)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !some {
		return
	}
	f := k.note("", "Every image in containerd's own content store, %s, becomes unreachable while Tank is the "+
		"content store: it can't be run, exported or pulled again until it is removed from containerd's list", blobs)
	f.remedy("Either remove those images first, or set containerd_address in Tank's own config, which leaves " +
		"containerd its store.")
	if err != nil {
		f.remedy("%s Tank could not determine whether there are such images: %v.", f.Remedy, err)
	}
}

// hasFile reports whether one of the directories in dir, which are named after digest algorithms, has an entry.
func hasFile(dir string) (bool, error) {
	algorithms, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, a := range algorithms {
		f, err := os.Open(filepath.Join(dir, a.Name()))
		if err != nil {
			return false, err
		}
		_, err = f.Readdirnames(1)
		f.Close()
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, io.EOF) {
			return false, err
		}
	}
	return false, nil
}

// isolated reports whether containerd gives a blob only to namespaces that have proved that they may read it.
func (k *checker) isolated() bool {
	var bolt struct {
		Policy string `toml:"content_sharing_policy"`
	}
	return k.decode(pluginMetadata, &bolt) && bolt.Policy == "isolated"
}

// isolation checks skip_known_blobs against containerd's sharing policy.
func (k *checker) isolation() {
	if k.in.SkipKnownBlobs && k.isolated() {
		k.wrong(section(pluginMetadata), "has content_sharing_policy = \"isolated\", but Tank's own config has "+
			"skip_known_blobs = true: a namespace gets layers that its registry does not let it have").
			remedy("Leave skip_known_blobs out.")
	}
}

// discarded checks skip_known_blobs against CRI's setting about the blobs of unpacked layers.
func (k *checker) discarded(discard bool) {
	switch {
	case discard && !k.in.SkipKnownBlobs && !k.isolated():
		k.note("", "CRI discards the blobs of unpacked layers (discard_unpacked_layers = true)").
			remedy("With skip_known_blobs = true in Tank's own config containerd does not download them again " +
				"for other images.")
	case !discard && k.in.SkipKnownBlobs:
		k.note("", "Tank's own config has skip_known_blobs = true, but CRI keeps the blobs of unpacked layers: "+
			"images may lack blobs, and then can't be pushed, exported or run by another snapshotter")
	}
}
