package containerdconfig

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// ownStore looks for images in containerd's own content store, which containerd no longer reads in the full install.
func (k *checker) ownStore() {
	if !k.Content || !slices.Contains(k.DisabledPlugins, pluginContent) {
		return
	}
	blobs := filepath.Join(cmp.Or(k.OwnRoot, containerdRoot), pluginContent, "blobs")
	const then = "becomes unreachable while Tank is the content store: it can't be run, exported or pulled again " +
		"until it is removed from containerd's list. Either remove those images first, or set containerd_address in " +
		"Tank's own config, which leaves containerd its store."
	switch some, err := hasFile(blobs); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		k.note("Every image in containerd's own content store, %s, %s Whether there are any can't be found out: %v.",
			blobs, then, err)
	case some:
		k.note("Every image in containerd's own content store, %s, %s", blobs, then)
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

// isolated reports whether namespaces have to prove that they may have a blob.
func (k *checker) isolated() bool {
	var bolt struct {
		Policy string `toml:"content_sharing_policy"`
	}
	return k.decode(pluginMetadata, &bolt, k.findings) && bolt.Policy == "isolated"
}

// sharing compares skip_known_blobs with containerd's policy.
func (k *checker) sharing() {
	if k.SkipKnownBlobs && k.isolated() {
		k.wrong("[plugins.'%s'] has content_sharing_policy = \"isolated\", but Tank's own config has "+
			"skip_known_blobs = true: a namespace gets layers that its registry does not let it have. Leave "+
			"skip_known_blobs out.", pluginMetadata)
	}
}

// discarded looks at what CRI does with the blobs of unpacked layers, and whether skip_known_blobs fits.
func (k *checker) discarded(discard bool) {
	switch {
	case discard && !k.SkipKnownBlobs && !k.isolated():
		k.note("CRI discards the blobs of unpacked layers (discard_unpacked_layers = true). " +
			"With skip_known_blobs = true in Tank's own config containerd does not download them again for other images.")
	case !discard && k.SkipKnownBlobs:
		k.note("Tank's own config has skip_known_blobs = true, but CRI keeps the blobs of unpacked layers: " +
			"images may lack blobs, and then can't be pushed, exported or run by another snapshotter.")
	}
}

// disabledCRI returns the first plugin of CRI that is disabled, "" if none is.
func (k *checker) disabledCRI() string {
	for _, plugin := range []string{pluginCRI, pluginImages, pluginRuntime} {
		if slices.Contains(k.DisabledPlugins, plugin) {
			return plugin
		}
	}
	return ""
}
