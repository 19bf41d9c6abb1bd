package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// matrixRow is an operation and its expected result.
type matrixRow struct {
	id, title, asserts string
	run                func(n *matrixNode)
}

// matrixRows are the operations of the table, in its order.
var matrixRows = []matrixRow{
	{"drop-in", "the printed drop-in", "containerd loads every plugin in it and warns of no key", rowDropIn},
	{"pull", "`ctr images pull`",
		"every blob is fetched once; `ctr images check` reports the image as complete and unpacked", rowPull},
	{"pull-local", "`ctr images pull --local`", "the client pulls instead of the transfer service; the image is " +
		"complete and unpacked, and the mounted tree is the model's", rowPullLocal},
	{"pull-unlabelled", "pull without labels", "`enable_remote_snapshot_annotations` is removed from the drop-in; " +
		"the image is complete and unpacked, and the mounted tree is the model's", rowPullUnlabelled},
	{"pull-shared", "pull of an image built from another",
		"only the new layer is fetched and unpacked; the mounted tree is the model's", rowPullShared},
	{"pull-reordered", "pull of the same layers in another order",
		"no layer is fetched or unpacked; the mounted tree is the model's", rowPullReordered},
	{"pull-after-cli", "pull of what the CLI pulled before", "no layer is unpacked again, and the image is " +
		"complete; in the full install containerd fetches no blob", rowPullAfterCLI},
	{"pull-known", "pull of layers whose blobs were deleted", "another namespace pulls; each layer is fetched once " +
		"and none is unpacked again; the image is complete, the mounted tree is the model's, and a container runs",
		rowPullKnown},
	{"pull-skipped", "the same with `skip_known_blobs`",
		"no layer is fetched or unpacked again; the mounted tree is the model's, and a container runs", rowPullSkipped},
	{"mount", "`ctr images mount`", "the tree is the model's, also for an image that containerd's overlayfs refuses",
		rowMount},
	{"rm", "`ctr images rm`",
		"after a container ran, nothing is left in Tank's root, and no blob in containerd's content store", rowRemove},
	{"import", "`ctr images import`", "an OCI archive is imported; the mounted tree is the model's", rowImport},
	{"export", "`ctr images export`", "a containerd without Tank imports the archive and mounts the model's tree",
		rowExport},
	{"push", "`ctr images push`", "the image is pushed to another repository; a containerd without Tank pulls the " +
		"same manifest from there and mounts the model's tree", rowPush},
	{"run", "`ctr run`", "the container prints its greeting", rowRun},
	{"fetch", "`ctr content fetch`", "every blob is stored; mounting then unpacks the blobs to the model's tree",
		rowFetch},
	{"usage", "`ctr snapshots usage`", "the usage of a layer is that of its files, and of a container's snapshot " +
		"that of what the container wrote", rowUsage},
	{"pod", "a pod with two containers (CRI)", "both print their greeting; pod and image are removed", rowPod},
	{"pod-unpack", "a pod from an image that is not unpacked (CRI)",
		"the snapshotter was changed after the pull; containers start, and no blob is fetched", rowPodUnpack},
	{"status", "image status (CRI)", "identity, name and size are those of the image", rowImageStatus},
	{"fsinfo", "filesystem statistics (CRI)", "the path is Tank's root, and bytes and inodes in use are counted",
		rowImageFsInfo},
}

// matrixNode is the node of one cell, with the tests' own image in its registry.
type matrixNode struct {
	*cell
	e   *Env
	col column
	k   *TankRoot
	c   *Containerd
	r   *Registry
	f   Fixture
	ref string
}

func newMatrixNode(t *cell, col column) *matrixNode {
	n := &matrixNode{cell: t, e: NewWith(t, col.version), col: col, f: OwnFixture(t)}
	n.ref = TestRegistry + "/" + n.f.Name
	return n
}

// start starts the node; a row may change the column before. The daemon may do only what its unit allows.
func (n *matrixNode) start() {
	n.col.setup.AsUnit = true
	n.k, n.c, n.r = n.e.NewNodeAs(n.col.setup)
	n.r.Push(n.f.Layout, n.f.Ref, n.f.Name)
}

// checkMount compares the mounted image with its expected tree, and the type of the mount with the mode.
func (n *matrixNode) checkMount(what string, want []Node, ref string) {
	dir := n.c.Mount(ref)
	CheckTree(n, what, want, dir)
	kind, base := " overlay ", filepath.Join(n.k.Root, "layers")
	line := mountOf(n, dir)
	if n.col.setup.Directory {
		if strings.Contains(line, kind) {
			n.Errorf("directory mode mounts %q", line)
		}
	} else if !strings.Contains(line, kind) || !strings.Contains(line, base) {
		n.Errorf("mounted as %q, not as overlay on %s", line, base)
	}
	n.c.Unmount(dir)
}

// checkComplete asks containerd whether it has every blob of the image and every layer unpacked.
func (n *matrixNode) checkComplete(ref string) {
	out := n.c.Ctr("images", "check", "--snapshotter", n.c.Snapshotter, "name=="+ref)
	blobs := len(distinct(n.f.Image.Layers)) + 2
	if !strings.Contains(out, fmt.Sprintf("complete (%d/%d)", blobs, blobs)) ||
		!strings.HasSuffix(strings.TrimSpace(out), "true") {
		n.Errorf("ctr images check: %s", out)
	}
}

// distinct drops the repetitions of layers, of which there is one blob.
func distinct(layers []ocispec.Descriptor) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, l := range layers {
		if !slices.ContainsFunc(out, func(o ocispec.Descriptor) bool { return o.Digest == l.Digest }) {
			out = append(out, l)
		}
	}
	return out
}

// elsewhere is a second containerd of the same version, with its own native snapshotter: overlayfs refuses the image.
func (n *matrixNode) elsewhere() *Containerd {
	return n.e.NewContainerd(ContainerdOptions{Name: "d", Snapshotter: "native"})
}

// checkElsewhere compares what another containerd unpacked with the model, except for the times of
// directories that a layer only implies, which containerd sets to now.
func (n *matrixNode) checkElsewhere(d *Containerd, ref string) {
	dir := d.Mount(ref)
	got, err := Tree(dir)
	if err != nil {
		n.Fatal(err)
	}
	if diffs := CompareTrees(withoutTimes(n.f.Tree, got), withoutTimes(got, got), 20); len(diffs) > 0 {
		n.Errorf("elsewhere the tree differs from the model:\n%s", strings.Join(diffs, "\n"))
	}
	d.Unmount(dir)
}

// layerGets are the requests for layers since the log was reset.
func (n *matrixNode) layerGets(img Image) (gets []Request) {
	for _, g := range n.r.BlobGets() {
		if slices.ContainsFunc(img.Layers, func(l ocispec.Descriptor) bool { return l.Digest == g.Blob() }) {
			gets = append(gets, g)
		}
	}
	return gets
}

func rowDropIn(n *matrixNode) {
	n.start()
	log, err := os.ReadFile(n.c.Process().Log)
	if err != nil {
		n.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "Ignoring unknown key") {
			n.Errorf("containerd warns: %s", line)
		}
	}
	loaded := map[string]string{}
	for line := range strings.Lines(n.c.Ctr("plugins", "ls")) {
		if f := strings.Fields(line); len(f) > 3 {
			loaded[f[0]+" "+f[1]] = f[len(f)-1]
		}
	}
	want := []string{"io.containerd.snapshotter.v1 tank", "io.containerd.differ.v1 tank-diff",
		"io.containerd.transfer.v1 local",
		"io.containerd.cri.v1 images", "io.containerd.grpc.v1 cri"}
	if !n.col.setup.WithoutContent {
		want = append(want, "io.containerd.content.v1 tank-content")
	}
	for _, id := range want {
		if loaded[id] != "ok" {
			n.Errorf("plugin %s: %q", id, loaded[id])
		}
	}
}

func rowPull(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	n.checkComplete(n.ref)
	times := map[digest.Digest]int{}
	for _, g := range n.r.BlobGets() {
		times[g.Blob()]++
	}
	for _, l := range append(n.f.Image.Layers, n.f.Image.Config) {
		if times[l.Digest] != 1 {
			n.Errorf("blob %s was fetched %d times", l.Digest, times[l.Digest])
		}
	}
}

func rowPullLocal(n *matrixNode) {
	n.start()
	n.c.Ctr("images", "pull", "--local", "--hosts-dir", filepath.Join(n.c.Dir, "hosts"), "--snapshotter",
		n.c.Snapshotter, n.ref)
	n.checkComplete(n.ref)
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
}

func rowPullUnlabelled(n *matrixNode) {
	n.col.setup.NoLabels = true
	n.start()
	n.c.Pull(n.ref)
	n.checkComplete(n.ref)
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
}

func rowPullShared(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	more := CornerFixture(n)
	n.r.Push(more.Layout, more.Ref, more.Name)
	ref := TestRegistry + "/" + more.Name
	appeared, before := n.k.watchStaging(n), n.k.LayerInodes(n)
	n.r.ResetLog()
	n.c.Pull(ref)
	top := len(more.Image.Layers) - 1
	for _, g := range n.layerGets(more.Image) {
		if g.Blob() != more.Image.Layers[top].Digest {
			n.Errorf("fetched again: %s", g.Blob())
		}
	}
	below := Image{DiffIDs: more.Image.DiffIDs[:top]}
	if unpacked := unpackedAmong(appeared(), below); len(unpacked) > 0 {
		n.Errorf("unpacked again: %v", unpacked)
	}
	checkSameInodes(n, before, n.k.LayerInodes(n))
	n.checkMount("ctr images mount", more.Tree, ref)
}

// checkSameInodes fails unless every earlier file of layers/ still exists.
func checkSameInodes(n *matrixNode, before, after map[string]uint64) {
	for p, ino := range before {
		if after[p] != ino {
			n.Errorf("layers/%s was inode %d and is %d", p, ino, after[p])
		}
	}
}

func rowPullReordered(n *matrixNode) {
	n.start()
	own, err := OwnLayers()
	if err != nil {
		n.Fatal(err)
	}
	layers := [][]Entry{own[1], own[0], own[5], own[2], own[3]}
	img, err := BuildImage(layers, helloConfig)
	if err != nil {
		n.Fatal(err)
	}
	want, err := ExpectedTree(layers)
	if err != nil {
		n.Fatal(err)
	}
	n.c.Pull(n.ref)
	n.r.PushBuilt(img, "test/reordered:1")
	ref := TestRegistry + "/test/reordered:1"
	appeared := n.k.watchStaging(n)
	n.r.ResetLog()
	n.c.Pull(ref)
	if gets := n.layerGets(img.Image); len(gets) > 0 {
		n.Errorf("fetched again: %+v", gets)
	}
	if unpacked := unpackedAmong(appeared(), img.Image); len(unpacked) > 0 {
		n.Errorf("unpacked again: %v", unpacked)
	}
	n.checkMount("ctr images mount", want, ref)
}

func rowPullAfterCLI(n *matrixNode) {
	n.start()
	n.k.Pull(n.r.Ref(n.f.Name))
	appeared := n.k.watchStaging(n)
	n.r.ResetLog()
	n.c.Pull(n.ref)
	if gets := n.r.BlobGets(); len(gets) > 0 && !n.col.setup.WithoutContent {
		n.Errorf("fetched again: %+v", gets)
	}
	if unpacked := unpackedAmong(appeared(), n.f.Image); len(unpacked) > 0 {
		n.Errorf("unpacked again: %v", unpacked)
	}
	n.checkComplete(n.ref)
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
}

func rowPullKnown(n *matrixNode) {
	n.pullKnown(func(gets []Request) {
		if fetched := len(gets); fetched != len(distinct(n.f.Image.Layers)) {
			n.Errorf("%d layers fetched: %+v", fetched, gets)
		}
		n.checkComplete(n.ref)
	})
}

func rowPullSkipped(n *matrixNode) {
	n.col.setup.SkipKnown = true
	n.pullKnown(func(gets []Request) {
		if len(gets) > 0 {
			n.Errorf("fetched again: %+v", gets)
		}
	})
}

// pullKnown pulls an image into another namespace after the blobs of its layers were deleted, and
// checks the requests for layers.
func (n *matrixNode) pullKnown(check func(layerGets []Request)) {
	n.start()
	n.c.Pull(n.ref)
	var layers []string
	for _, l := range distinct(n.f.Image.Layers) {
		layers = append(layers, l.Digest.String())
	}
	n.c.Ctr(append([]string{"content", "rm"}, layers...)...)
	blobs := filepath.Join(n.k.Root, "blobs", "sha256")
	if n.col.setup.WithoutContent {
		blobs = filepath.Join(n.c.Dir, "root", "io.containerd.content.v1.content", "blobs", "sha256")
	}
	Eventually(n, 20*time.Second, "the blobs of the layers are gone", func() bool {
		return !slices.ContainsFunc(n.f.Image.Layers, func(l ocispec.Descriptor) bool {
			_, err := os.Stat(filepath.Join(blobs, l.Digest.Encoded()))
			return err == nil
		})
	})
	other := *n.c
	other.Namespace = n.e.Name("other")
	appeared := n.k.watchStaging(n)
	n.r.ResetLog()
	other.Pull(n.ref)
	if unpacked := unpackedAmong(appeared(), n.f.Image); len(unpacked) > 0 {
		n.Errorf("unpacked again: %v", unpacked)
	}
	n.c = &other
	check(n.layerGets(n.f.Image))
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
	if got := n.c.Run(n.ref, n.e.Name("hello")); got != helloText {
		n.Errorf("printed %q", got)
	}
}

func rowMount(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
	corner := CornerFixture(n)
	n.r.Push(corner.Layout, corner.Ref, corner.Name)
	ref := TestRegistry + "/" + corner.Name
	n.c.Pull(ref)
	n.checkMount("corner cases", corner.Tree, ref)
}

func rowRemove(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	if got := n.c.Run(n.ref, n.e.Name("hello")); got != helloText {
		n.Errorf("printed %q", got)
	}
	n.c.RemoveImage(n.ref)
	if out := n.c.Ctr("images", "ls", "-q"); out != "" {
		n.Errorf("images after rm: %q", out)
	}
	if out := n.c.Ctr("content", "ls", "-q"); out != "" {
		n.Errorf("content after rm: %q", out)
	}
	if out := n.c.Ctr("snapshots", "--snapshotter", "tank", "ls"); strings.Count(out, "\n") > 1 {
		n.Errorf("snapshots after rm: %q", out)
	}
	checkEmpty(n, n.k)
}

func rowImport(n *matrixNode) {
	n.start()
	layers, err := OwnLayers()
	if err != nil {
		n.Fatal(err)
	}
	img, err := BuildImage(layers, helloConfig)
	if err != nil {
		n.Fatal(err)
	}
	layout, archive := n.e.Path("layout"), n.e.Path("import.tar")
	if err := WriteLayout(layout, map[string]BuiltImage{"1": img}); err != nil {
		n.Fatal(err)
	}
	n.e.MustRun("tar", "-C", layout, "-cf", archive, ".")
	n.c.Ctr("images", "import", "--snapshotter", n.c.Snapshotter, "--base-name", "registry.test/test/imported", archive)
	n.checkComplete("registry.test/test/imported:1")
	n.checkMount("ctr images mount", n.f.Tree, "registry.test/test/imported:1")
}

func rowExport(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	archive := n.e.Path("export.tar")
	n.c.Ctr("images", "export", archive, n.ref)
	d := n.elsewhere()
	d.Ctr("images", "import", "--snapshotter", d.Snapshotter, archive)
	n.checkElsewhere(d, n.ref)
}

func rowPush(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	pushed := n.r.Backend + "/test/pushed:1"
	n.c.Ctr("images", "tag", n.ref, pushed)
	n.c.Ctr("images", "push", "--plain-http", pushed)
	d := n.elsewhere()
	d.Ctr("images", "pull", "--plain-http", "--snapshotter", d.Snapshotter, pushed)
	if out := d.Ctr("images", "ls", "name=="+pushed); !strings.Contains(out, n.f.Image.Manifest.Digest.String()) {
		n.Errorf("elsewhere the image is %s", out)
	}
	n.checkElsewhere(d, pushed)
}

func rowRun(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	if got := n.c.Run(n.ref, n.e.Name("hello")); got != helloText {
		n.Errorf("printed %q", got)
	}
}

func rowFetch(n *matrixNode) {
	n.start()
	n.c.Ctr("content", "fetch", "--hosts-dir", filepath.Join(n.c.Dir, "hosts"), n.ref)
	for _, d := range append(n.f.Image.Layers, n.f.Image.Config, n.f.Image.Manifest) {
		if got := digest.FromString(n.c.Ctr("content", "get", d.Digest.String())); got != d.Digest {
			n.Errorf("content get %s gives bytes of %s", d.Digest, got)
		}
	}
	n.r.ResetLog()
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
	if gets := n.r.BlobGets(); len(gets) > 0 {
		n.Errorf("fetched again: %+v", gets)
	}
}

// usage reads the bytes that `snapshots usage` gives, by snapshot.
func (n *matrixNode) usage(keys ...string) map[string]int64 {
	out := n.c.Ctr(append([]string{"snapshots", "--snapshotter", n.c.Snapshotter, "usage", "-b"}, keys...)...)
	sizes := map[string]int64{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && f[0] != "KEY" {
			size, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				n.Fatalf("snapshots usage: %q", line)
			}
			sizes[f[0]] = size
		}
	}
	return sizes
}

func rowUsage(n *matrixNode) {
	n.start()
	n.c.Pull(n.ref)
	layers, err := OwnLayers()
	if err != nil {
		n.Fatal(err)
	}
	chain := identity.ChainIDs(slices.Clone(n.f.Image.DiffIDs))
	sizes := n.usage()
	for i, id := range chain {
		var files int64
		for _, e := range layers[i] {
			files += int64(len(e.Data))
		}
		if got, there := sizes[id.String()]; !there || got < files {
			n.Errorf("layer %d of %d bytes in files: usage %d (%v)", i, files, got, there)
		}
	}
	key, at := n.e.Name("active"), n.e.Path("active")
	if err := os.Mkdir(at, 0o755); err != nil {
		n.Fatal(err)
	}
	n.c.Ctr("snapshots", "--snapshotter", n.c.Snapshotter, "prepare", key, chain[len(chain)-1].String())
	n.e.MustRun("sh", "-c", n.c.Ctr("snapshots", "--snapshotter", n.c.Snapshotter, "mounts", at, key))
	before := n.usage(key)[key]
	if err := os.WriteFile(filepath.Join(at, "written"), make([]byte, 1<<20), 0o644); err != nil {
		n.Fatal(err)
	}
	if got := n.usage(key)[key]; got < before+1<<20 {
		n.Errorf("after a MiB was written: usage %d, before %d", got, before)
	}
	n.e.MustRun("umount", at)
	n.c.Ctr("snapshots", "--snapshotter", n.c.Snapshotter, "rm", key)
}

func rowPod(n *matrixNode) {
	n.start()
	n.r.PushPause()
	k := n.c.CRI()
	image := k.Pull(n.ref)
	pod, config := k.RunPod("pod")
	for _, name := range []string{"one", "two"} {
		container := k.StartContainer(pod, config, name, image)
		if code := k.Await(container); code != 0 {
			n.Errorf("container %s ended with %d", name, code)
		}
		if log := string(tail(n.e.Path("log", name+".cri"), 4000)); !strings.Contains(log,
			strings.TrimSpace(helloText)) {
			n.Errorf("container %s printed %q", name, log)
		}
	}
	k.RemovePod(pod)
	k.RemoveImage(n.ref)
	ctx, cancel := k.context()
	defer cancel()
	if r, err := k.Images.ImageStatus(ctx,
		&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: n.ref}}); err != nil || r.Image != nil {
		n.Errorf("after its removal: image status %v, %v", r, err)
	}
}

func rowPodUnpack(n *matrixNode) {
	n.start()
	n.r.PushPause()
	kube := *n.c
	kube.Namespace = "k8s.io"
	for _, ref := range []string{PauseRef, n.ref} {
		kube.Ctr("content", "fetch", "--hosts-dir", filepath.Join(n.c.Dir, "hosts"), ref)
	}
	n.r.ResetLog()
	k := n.c.CRI()
	Eventually(n, 20*time.Second, "CRI learns of the image", func() bool {
		ctx, cancel := k.context()
		defer cancel()
		r, err := k.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: n.ref}})
		return err == nil && r.Image != nil
	})
	pod, config := k.RunPod("pod")
	container := k.StartContainer(pod, config, "hello", n.ref)
	if code := k.Await(container); code != 0 {
		n.Errorf("the container ended with %d", code)
	}
	if log := string(tail(n.e.Path("log", "hello.cri"), 4000)); !strings.Contains(log, strings.TrimSpace(helloText)) {
		n.Errorf("the container printed %q", log)
	}
	k.RemovePod(pod)
	if gets := n.r.BlobGets(); len(gets) > 0 {
		n.Errorf("fetched again: %+v", gets)
	}
	n.c = &kube
	n.checkMount("ctr images mount", n.f.Tree, n.ref)
}

func rowImageStatus(n *matrixNode) {
	n.start()
	k := n.c.CRI()
	k.Pull(n.ref)
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: n.ref}})
	if err != nil || r.Image == nil {
		n.Fatalf("image status: %v, %v", r, err)
	}
	var blobs uint64
	for _, d := range append(n.f.Image.Layers, n.f.Image.Config, n.f.Image.Manifest) {
		blobs += uint64(d.Size)
	}
	if r.Image.Id != n.f.Image.Config.Digest.String() || !slices.Contains(r.Image.RepoTags, n.ref) ||
		r.Image.Size != blobs {
		n.Errorf("image status %v; wanted %s with %d bytes", r.Image, n.f.Image.Config.Digest, blobs)
	}
}

func rowImageFsInfo(n *matrixNode) {
	n.start()
	k := n.c.CRI()
	k.Pull(n.ref)
	var last *runtimeapi.ImageFsInfoResponse
	var err error
	defer func() {
		if n.Failed() {
			n.Errorf("filesystem statistics: %v, %v", last, err)
		}
	}()
	Eventually(n, 45*time.Second, "containerd counts the image, which it does every ten seconds", func() bool {
		ctx, cancel := k.context()
		defer cancel()
		last, err = k.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		return err == nil && len(last.ImageFilesystems) == 1 && last.ImageFilesystems[0].UsedBytes.GetValue() > 0 &&
			last.ImageFilesystems[0].InodesUsed.GetValue() > 0
	})
	if at := last.ImageFilesystems[0].FsId.GetMountpoint(); at != n.k.Root {
		n.Errorf("the statistics are about %s, not %s", at, n.k.Root)
	}
}
