package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// toyDecoder is a stream processor for the toy cipher of encrypted: it removes the head of the blob if the file that
// its argument names contains the key.
const toyDecoder = `#!/bin/sh
[ "$STREAM_PROCESSOR_MEDIATYPE" = "` + images.MediaTypeImageLayerGzipEncrypted + `" ] || { echo "type $STREAM_PROCESSOR_MEDIATYPE" >&2; exit 1; }
[ "$(cat "$1" 2>/dev/null)" = "$KEY" ] || { echo "no suitable key found" >&2; exit 1; }
exec tail -c +` + "4097\n"

// encrypted returns the image with layers that only toyDecoder makes readable.
func encrypted(t testing.TB, img BuiltImage) BuiltImage {
	t.Helper()
	out := BuiltImage{Blobs: map[digest.Digest][]byte{img.Config.Digest: img.Blobs[img.Config.Digest]}}
	out.DiffIDs, out.Config = img.DiffIDs, img.Config
	for _, l := range img.Layers {
		blob := append(bytes.Repeat([]byte("cipher"), 4096/6+1)[:4096], img.Blobs[l.Digest]...)
		out.Layers = append(out.Layers, out.add(images.MediaTypeImageLayerGzipEncrypted, blob))
	}
	text, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: out.Config,
		Layers: out.Layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	out.Manifest = out.add(ocispec.MediaTypeImageManifest, text)
	return out
}

// TestEncrypted: containerd with Tank pulls an image that a configured stream processor decodes, and runs it through
// ctr and CRI, as with containerd's own overlayfs. Without the key a pull fails, although Tank has the layers
// unpacked.
func TestEncrypted(t *testing.T) {
	for name, s := range map[string]Setup{
		"as the unit": {AsUnit: true}, "second": {WithoutContent: true},
		"Tank's own section": {OwnProcessors: true, Sequential: true, SkipKnown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := New(t)
			r := e.NewRegistry()
			key := writeFile(e, "key", "open sesame")
			decoder := writeFile(e, "decoder", toyDecoder)
			if err := os.Chmod(decoder, 0o755); err != nil {
				t.Fatal(err)
			}
			s.Processors = fmt.Sprintf(
				"[stream_processors.toy]\n  accepts = [%q]\n  returns = %q\n  path = %q\n  args = [%q]\n"+
					"  env = [\"KEY=open sesame\"]\n", images.MediaTypeImageLayerGzipEncrypted,
				ocispec.MediaTypeImageLayerGzip, decoder, key)
			k, c := e.startNode(s, r)
			img, tree := smallImage(t, []Entry{file("etc/one", 0o644, "one\n")})
			secret := encrypted(t, img)
			r.PushBuilt(secret, "test/secret:1")
			ref := TestRegistry + "/test/secret:1"
			config := filepath.Join(c.Dir, "config.toml")
			if code, printed := k.configCheck(config); !s.Sequential && code != 0 || !s.OwnProcessors &&
				!strings.Contains(printed, "Tank runs the stream processor \"toy\"") {
				t.Errorf("config check: exit code %d\n%s", code, printed)
			}

			c.Pull(ref)
			dir := c.Mount(ref)
			CheckTree(t, "ctr images mount", tree, dir)
			c.Unmount(dir)
			c.checkHello(t, "after the pull", ref)

			local := c.in(e.Name("local"))
			appeared := k.watchStaging(t)
			local.Ctr(append(local.pullArgs(ref), "--local")...)
			if unpacked := unpackedAmong(appeared(), secret.Image); len(unpacked) > 0 {
				t.Errorf("unpacked again: %v", unpacked)
			}
			local.checkHello(t, "after a pull by the client", ref)

			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
			other := c.in(e.Name("other"))
			if res := other.CtrResult(other.pullArgs(ref)...); res.Code == 0 ||
				!strings.Contains(res.Stderr, "no suitable key found") {
				t.Errorf("without the key: %s", res)
			}
			if !s.WithoutContent {
				writeFile(e, "key", "open sesame")
				r.PushPause()
				checkPod(t, c, ref)
			}
		})
	}
}

// TestEncryptedWithout: if no stream processor is configured, Tank looks for containerd's decoder, ctd-decoder, as
// containerd does, and the error names that program if it is missing.
func TestEncryptedWithout(t *testing.T) {
	if _, err := exec.LookPath("ctd-decoder"); err == nil {
		t.Skip("ctd-decoder is installed here")
	}
	e := New(t)
	_, c, r := e.NewNode()
	img, _ := smallImage(t)
	secret := encrypted(t, img)
	r.PushBuilt(secret, "test/secret:1")
	if res := c.CtrResult(c.pullArgs(TestRegistry + "/test/secret:1")...); res.Code == 0 ||
		!strings.Contains(res.Stderr, "ctd-decoder") {
		t.Errorf("without ctd-decoder: %s", res)
	}
}
