package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// committer makes images of containers through containerd's API, as `nerdctl commit` and BuildKit's exporter do.
type committer struct {
	t      *testing.T
	c      *Containerd
	client *containerd.Client
	ctx    context.Context
}

func newCommitter(t *testing.T, c *Containerd) *committer {
	t.Helper()
	client, err := containerd.New(c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := client.WithLease(namespaces.WithNamespace(context.Background(), c.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := done(ctx); err != nil {
			t.Error(err)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return &committer{t, c, client, ctx}
}

func (m *committer) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// tree returns the tree of a snapshot.
func (m *committer) tree(key string) []Node {
	m.t.Helper()
	mounts, err := m.client.SnapshotService(m.c.Snapshotter).Mounts(m.ctx, key)
	m.must(err)
	var nodes []Node
	m.must(mount.WithReadonlyTempMount(m.ctx, mounts, func(root string) (err error) {
		nodes, err = Tree(root)
		return err
	}))
	return nodes
}

// diff makes a layer from the changes in a snapshot.
func (m *committer) diff(key string) (layer ocispec.Descriptor, diffID digest.Digest) {
	m.t.Helper()
	layer, err := rootfs.CreateDiff(m.ctx, key, m.client.SnapshotService(m.c.Snapshotter), m.client.DiffService())
	m.must(err)
	info, err := m.client.ContentStore().Info(m.ctx, layer.Digest)
	m.must(err)
	diffID, err = digest.Parse(info.Labels["containerd.io/uncompressed"])
	m.must(err)
	if info.Size != layer.Size {
		m.t.Errorf("the layer has %d bytes, its descriptor has %d", info.Size, layer.Size)
	}
	return layer, diffID
}

// put writes a document into containerd's content store, with labels that keep what it names.
func (m *committer) put(mediaType string, v any, refs ...ocispec.Descriptor) ocispec.Descriptor {
	m.t.Helper()
	text, err := json.Marshal(v)
	m.must(err)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	labels := map[string]string{}
	for i, r := range refs {
		labels["containerd.io/gc.ref.content."+string(rune('a'+i))] = r.Digest.String()
	}
	m.must(content.WriteBlob(m.ctx, m.client.ContentStore(), d.Digest.String(), bytes.NewReader(text), d,
		content.WithLabels(labels)))
	return d
}

// commit makes the image name of base and a layer on top, and unpacks it.
func (m *committer) commit(name string, base containerd.Image, layer ocispec.Descriptor, diffID digest.Digest) {
	m.t.Helper()
	cs := m.client.ContentStore()
	manifest, err := images.Manifest(m.ctx, cs, base.Target(), base.Platform())
	m.must(err)
	blob, err := content.ReadBlob(m.ctx, cs, manifest.Config)
	m.must(err)
	var config ocispec.Image
	m.must(json.Unmarshal(blob, &config))
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	config.History = nil
	manifest.Config = m.put(manifest.Config.MediaType, config)
	manifest.Layers = append(manifest.Layers, layer)
	target := m.put(ocispec.MediaTypeImageManifest, manifest,
		append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...)...)
	img, err := m.client.ImageService().Create(m.ctx, images.Image{Name: name, Target: target})
	m.must(err)
	m.must(containerd.NewImage(m.client, img).Unpack(m.ctx, m.c.Snapshotter))
}

// change changes the files of a container as a build step may: it makes, changes and links files, and removes or
// replaces files and whole directories.
func change(t *testing.T, root string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(root, name) }
	for _, err := range []error{
		os.MkdirAll(in("new/deep"), 0o750),
		os.WriteFile(in("new/deep/file"), []byte("new\n"), 0o640),
		os.Chown(in("new/deep/file"), 71, 72),
		os.Link(in("new/deep/file"), in("new/link")),
		os.Symlink("deep/file", in("new/symlink")),
		os.WriteFile(in("etc/passwd"), []byte("root:x:0:0:changed:/:/usr/bin/hello\n"), 0o644),
		os.Chmod(in("usr/lib/data-001"), 0o600),
		os.Remove(in("usr/lib/data-002")),
		os.RemoveAll(in("opaque")),
		os.Mkdir(in("opaque"), 0o711),
		os.WriteFile(in("opaque/again"), []byte("again\n"), 0o644),
		os.RemoveAll(in("a/b")),
		os.WriteFile(in("a/b"), []byte("a file now\n"), 0o644),
		os.RemoveAll(in("usr/second")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

// TestCommit: the changes of a container become a layer of a new image, as `nerdctl commit` and BuildKit
// make it through containerd's diff service. Unpacked again, that image has the files of the container. The
// layer is complete in containerd's records, so that the image can be exported and run
// again.
func TestCommit(t *testing.T) {
	for name, s := range map[string]Setup{
		"overlay": {}, "directory": {Directory: true}, "second install": {WithoutContent: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := New(t)
			_, c, r := e.NewNodeAs(s)
			f := OwnFixture(t)
			r.Push(f.Layout, f.Ref, f.Name)
			ref := TestRegistry + "/" + f.Name
			c.Pull(ref)
			m := newCommitter(t, c)
			base, err := m.client.GetImage(m.ctx, ref)
			m.must(err)

			id := e.Name("box")
			pid, _ := c.RunDetached(ref, id, "/usr/bin/hello", "pause")
			change(t, filepath.Join("/proc", strconv.Itoa(pid), "root"))
			c.Ctr("tasks", "pause", id) // as nerdctl does, while it reads what was written
			layer, diffID := m.diff(id)
			c.Ctr("tasks", "resume", id)
			c.Ctr("tasks", "rm", "--force", id)
			want := m.tree(id)
			m.commit("test/committed:1", base, layer, diffID)
			m.check("test/committed:1", want)
			if got := c.Run("test/committed:1", e.Name("again"), "/usr/bin/hello"); got != helloText {
				t.Errorf("a container of the committed image printed %q", got)
			}

			// BuildKit commits the snapshot first, and compares a view of it with a view of its parent.
			m.must(m.client.SnapshotService(c.Snapshotter).Commit(m.ctx, id+"-layer", id))
			layer, diffID = m.diff(id + "-layer")
			m.commit("test/committed:2", base, layer, diffID)
			m.check("test/committed:2", want)
			c.Ctr("images", "export", e.Path("committed.tar"), "test/committed:2")
		})
	}
}

// check compares an image with a tree.
func (m *committer) check(ref string, want []Node) {
	m.t.Helper()
	dir := m.c.Mount(ref)
	CheckTree(m.t, ref, want, dir)
	m.c.Unmount(dir)
}
