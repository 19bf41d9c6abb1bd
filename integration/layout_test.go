package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// readLayout reads the root as an OCI image layout, as another program would, and returns its
// references. Of an index, the platforms that were not pulled may be missing, but not all.
func readLayout(root string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(root, ocispec.ImageLayoutFile))
	if err != nil {
		return nil, err
	}
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(b, &layout); err != nil || layout.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("oci-layout is %q: %w", b, err)
	}
	if b, err = os.ReadFile(filepath.Join(root, ocispec.ImageIndexFile)); err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil || index.SchemaVersion != 2 {
		return nil, fmt.Errorf("index.json is %q: %w", b, err)
	}
	var refs []string
	seen := map[string]bool{}
	for _, d := range index.Manifests {
		ref := d.Annotations[ocispec.AnnotationRefName]
		if ref == "" || seen[ref] {
			return nil, fmt.Errorf("index.json: %s is called %q", d.Digest, ref)
		}
		seen[ref] = true
		refs = append(refs, ref)
		if err := checkClosure(root, d); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
	}
	return refs, nil
}

// checkClosure reports whether the files of d and of everything below it exist with their sizes.
func checkClosure(root string, d ocispec.Descriptor) error {
	if err := checkBlobFile(root, d); err != nil {
		return err
	}
	b, err := os.ReadFile(blobFile(root, d.Digest))
	if err != nil {
		return err
	}
	if digest.FromBytes(b) != d.Digest {
		return fmt.Errorf("%s has other bytes", d.Digest)
	}
	var m struct {
		Manifests, Layers []ocispec.Descriptor
		Config            ocispec.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	whole := len(m.Manifests) == 0
	for _, child := range m.Manifests {
		err := checkClosure(root, child)
		if errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), child.Digest.Encoded()) {
			continue // another platform
		}
		if err != nil {
			return err
		}
		whole = true
	}
	if !whole {
		return fmt.Errorf("no platform of %s is there", d.Digest)
	}
	if m.Config.Digest == "" {
		return nil
	}
	for _, blob := range append(m.Layers, m.Config) {
		if err := checkBlobFile(root, blob); err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
	return nil
}

func checkBlobFile(root string, d ocispec.Descriptor) error {
	st, err := os.Stat(blobFile(root, d.Digest))
	if err == nil && st.Size() != d.Size {
		err = fmt.Errorf("%s has %d bytes, not %d", d.Digest, st.Size(), d.Size)
	}
	return err
}

// CheckLayout fails the test if the root is not an OCI layout, and returns its references.
func CheckLayout(t testing.TB, k *TankRoot) []string {
	t.Helper()
	refs, err := readLayout(k.Root)
	if err != nil {
		t.Errorf("the root is no OCI layout: %v", err)
	}
	return refs
}

// TestLayoutAlways: while images come, move and go, a reader finds a valid OCI layout at every moment.
func TestLayoutAlways(t *testing.T) {
	first, second, _ := movedImages(t)
	alpine := AlpineFixture(t, "amd64")
	for _, daemon := range []bool{false, true} {
		t.Run(fmt.Sprintf("daemon=%v", daemon), func(t *testing.T) {
			e := New(t)
			r := e.NewRegistry()
			r.Push(alpine.Layout, alpine.Ref, alpine.Name)
			k := e.NewTank()
			if daemon {
				k.Serve()
			} else {
				k.Make()
			}
			if _, err := readLayout(k.Root); err != nil {
				t.Errorf("an empty root is no OCI layout: %v", err)
				k.Pull(r.Ref(alpine.Name), "--platform", "linux/amd64")
				k.MustRun("rm", r.Ref(alpine.Name))
			}
			stop, done := make(chan struct{}), make(chan int)
			go func() {
				reads := 0
				for ; ; reads++ {
					select {
					case <-stop:
						done <- reads
						return
					case <-time.After(time.Millisecond):
					}
					if _, err := readLayout(k.Root); err != nil && !layoutMoved(k.Root, err) {
						t.Errorf("read %d: the root is no OCI layout: %v", reads, err)
						<-stop
						done <- reads
						return
					}
				}
			}()
			ref, other := r.Ref("test/moving:1"), r.Ref(alpine.Name)
			for i := range 4 {
				img := []BuiltImage{first, second}[i%2]
				r.PushBuilt(img, "test/moving:1")
				k.Pull(ref)
				k.Pull(other, "--platform", []string{"linux/amd64", "linux/arm64"}[i%2])
				k.MustRun("gc")
				k.Pull(ref, "--refresh")
				if i%2 == 1 {
					k.MustRun("rm", other)
					k.MustRun("gc")
				}
			}
			close(stop)
			if reads := <-done; reads < 20 {
				t.Errorf("only %d reads", reads)
			}
			CheckLayout(t, k)
		})
	}
}

// layoutMoved reports whether a reading failed because the layout changed meanwhile: it opened index.json,
// and the blobs were removed together with their name before it read them. A second reading then
// succeeds.
func layoutMoved(root string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = readLayout(root)
	return err == nil
}

// TestLayoutIsMadeAgain: the next command repairs what a kill between the record of an image and index.json left.
func TestLayoutIsMadeAgain(t *testing.T) {
	e := New(t)
	r := e.NewRegistry()
	f := OwnFixture(t)
	r.Push(f.Layout, f.Ref, f.Name)
	k := e.NewTank()
	k.Pull(r.Ref(f.Name))
	for _, name := range []string{"index.json", "oci-layout"} {
		if err := os.Remove(filepath.Join(k.Root, name)); err != nil {
			t.Fatal(err)
		}
	}
	k.Pull(r.Ref(f.Name))
	if refs := CheckLayout(t, k); len(refs) != 1 || refs[0] != r.Ref(f.Name) {
		t.Errorf("the layout has %v", refs)
	}
	// An older index.json, which names an image that is no more.
	older, err := os.ReadFile(filepath.Join(k.Root, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	k.MustRun("rm", r.Ref(f.Name))
	if err := os.WriteFile(filepath.Join(k.Root, "index.json"), older, 0o644); err != nil {
		t.Fatal(err)
	}
	k.MustRun("gc")
	if refs := CheckLayout(t, k); len(refs) != 0 {
		t.Errorf("the layout has %v", refs)
	}
}

// TestSkopeo: skopeo reads each image of the root by the ref in the output of --json, and one that its tag
// has left by the ref in the output of images.
func TestSkopeo(t *testing.T) {
	requireProgram(t, "skopeo")
	first, second, _ := movedImages(t)
	alpine := AlpineFixture(t, "amd64")
	e := New(t)
	r := e.NewRegistry()
	r.Push(alpine.Layout, alpine.Ref, alpine.Name)
	k := e.NewTank()
	inspect := func(ref string, want digest.Digest) {
		t.Helper()
		res := e.Run("skopeo", "inspect", "--override-os", "linux", "--override-arch", "amd64", "--format",
			"{{.Digest}} {{len .Layers}}", "oci:"+k.Root+":"+ref)
		if res.Code != 0 || !strings.HasPrefix(res.Stdout, want.String()+" ") {
			t.Errorf("want %s: %s", want, res)
		}
	}
	r.PushBuilt(first, "test/moving:1")
	one := k.PullJSON(r.Ref("test/moving:1"))
	inspect(one.Ref, first.Manifest.Digest)
	two := k.PullJSON(r.Ref(alpine.Name), "--platform", "linux/amd64")
	inspect(two.Ref, digest.Digest(two.Digest))
	r.PushBuilt(second, "test/moving:1")
	inspect(k.PullJSON(r.Ref("test/moving:1")).Ref, second.Manifest.Digest)
	three := k.PullJSON(r.Ref("test/moving") + "@" + first.Manifest.Digest.String())
	inspect(three.Ref, first.Manifest.Digest)

	var list []struct {
		Ref, Digest string
		Untagged    bool
	}
	if err := json.Unmarshal([]byte(k.MustRun("images", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.Untagged {
			inspect(i.Ref, first.Manifest.Digest)
			return
		}
	}
	t.Errorf("no image is untagged: %+v", list)
}
