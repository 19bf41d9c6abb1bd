package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
)

// randomImage is an image from Tank's generator, with the result of its model.
type randomImage struct {
	Tag     string
	Refused bool
	Cases   []string
	Layers  [][]string
	name    string // in the registry
}

func (i randomImage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "image %s (%s):\n", i.Tag, strings.Join(i.Cases, "; "))
	for _, l := range i.Layers {
		fmt.Fprintf(&b, "\t{%s},\n", strings.Join(l, ", "))
	}
	return b.String()
}

// writeImages has the generator write a layout of images.
func writeImages(t *testing.T, first, count uint64) (layout string, images []randomImage) {
	t.Helper()
	layout = t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./snapshot/model/images", "-dir", layout,
		"-first", fmt.Sprint(first), "-count", fmt.Sprint(count))
	cmd.Dir, cmd.Env = filepath.Dir(moduleDir()), buildEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	text, err := os.ReadFile(filepath.Join(layout, "images.json"))
	if err == nil {
		err = json.Unmarshal(text, &images)
	}
	if err != nil {
		t.Fatal(err)
	}
	return layout, images
}

// compareSeeds are the seeds of the images of TestCompare: TANK_COMPARE=FIRST,COUNT asks for others.
func compareSeeds(t *testing.T) (first, count uint64) {
	t.Helper()
	text := os.Getenv("TANK_COMPARE")
	if text == "" {
		return 1, 24
	}
	if _, err := fmt.Sscanf(text, "%d,%d", &first, &count); err != nil {
		t.Fatalf("TANK_COMPARE=%s: %v", text, err)
	}
	return first, count
}

// comparison has the four ways to get the tree of an image: Tank's two doors, and two other programs.
type comparison struct {
	*Env
	t           *testing.T
	layout      string
	umoci       string // the program
	alone       *TankRoot
	node, plain *Containerd
	registry    *Registry
	began       time.Time
	tally       map[string]int
}

// TestCompare pulls random images alone and through containerd, and unpacks them with umoci and with containerd's own
// overlayfs. All trees have to be equal, but for the rows of known, which docs/adr/0003-layer-application.md lists.
func TestCompare(t *testing.T) {
	e := New(t)
	umoci, err := BuildUmoci()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Umask(unix.Umask(0o022)) // which umoci applies to directories without an entry
	first, count := compareSeeds(t)
	layout, images := writeImages(t, first, count)
	_, node, r := e.NewNode()
	plain := e.NewContainerd(ContainerdOptions{Name: "plain", Registries: []*Proxy{r.Proxy}})
	c := &comparison{
		Env: e, t: t, layout: layout, umoci: umoci, alone: e.NewTank(), node: node, plain: plain, registry: r,
		began: time.Now(), tally: map[string]int{},
	}
	for _, i := range images {
		i.name = "random:" + i.Tag
		r.Push(layout, i.Tag, i.name)
		c.compare(i)
	}
	t.Logf("%d images: %v", len(images), c.tally)
	for _, peer := range []string{"umoci", "overlayfs"} {
		if n := c.tally[peer+" equal"]; n < len(images)/3 {
			t.Errorf("only %d of %d trees of %s are equal in everything", n, len(images), peer)
		}
	}
}

// compare checks one image.
func (c *comparison) compare(i randomImage) {
	c.t.Helper()
	want, refused := c.pulled(i)
	if refused != i.Refused {
		c.t.Errorf("%s\tpull refuses it: %v, the model: %v", i, refused, i.Refused)
		return
	}
	if slices.Contains(i.Cases, "a hard link to a file of the layers below") && !refused {
		c.tally["with links to lower layers"]++
	}
	var roots []Node
	for _, program := range []struct {
		name string
		tree func(randomImage) ([]Node, error)
	}{
		{"tank", func(i randomImage) ([]Node, error) { return c.mounted(c.node, i) }},
		{"umoci", c.unpacked},
		{"overlayfs", func(i randomImage) ([]Node, error) { return c.mounted(c.plain, i) }},
	} {
		got, err := program.tree(i)
		// containerd's root directory is another one than that of a rootfs
		if err == nil && !refused && program.name != "umoci" {
			roots = append(roots, got[0])
			got[0] = want[0]
		}
		switch {
		case program.name == "tank" && err != nil && !errors.Is(err, errPull):
			c.t.Errorf("%s\tpulled, but not mounted: %v", i, err)
		case refused && err != nil:
			c.tally[program.name+" refuses, too"]++
		case err != nil:
			c.excuse(i, program.name, difference{refuses, fmt.Sprintf("refuses what pull takes: %v", err)})
		case refused:
			c.t.Errorf("%s\t%s takes it, and pull refuses it", i, program.name)
		default:
			c.differences(i, program.name, want, got)
		}
	}
	if len(roots) == 2 {
		roots[0].MTime = roots[1].MTime
		if a, b := text(roots[0]), text(roots[1]); a != b {
			c.t.Errorf("%s\troot directory %s, with overlayfs %s", i, a, b)
		}
	}
}

func (c *comparison) differences(i randomImage, peer string, want, got []Node) {
	c.t.Helper()
	all := c.diff(want, got)
	if len(all) == 0 {
		c.tally[peer+" equal"]++
	}
	for _, d := range all {
		if !c.excuse(i, peer, d) {
			return
		}
	}
}

// excuse returns the row that allows this difference of a peer. A difference without a row fails the test.
func (c *comparison) excuse(i randomImage, peer string, d difference) bool {
	c.t.Helper()
	for _, row := range known {
		if slices.Contains(i.Cases, row.when) && row.lets[peer]&d.kind != 0 {
			c.tally[peer+" differs: "+row.when]++
			return true
		}
	}
	c.t.Errorf("%s\t%s: %s", i, peer, d.text)
	return false
}

// pulled is the tree that Tank alone assembles.
func (c *comparison) pulled(i randomImage) (tree []Node, refused bool) {
	c.t.Helper()
	switch r := c.alone.Run("pull", "--progress", "none", c.registry.Ref(i.name)); r.Code {
	case 0:
		tree, err := listing(strings.TrimSpace(r.Stdout))
		if err != nil {
			c.t.Fatalf("%s: %v", i, err)
		}
		return tree, false
	case 6:
		return nil, true
	default:
		c.t.Fatalf("%s: %s", i, r)
		return nil, false
	}
}

// unpacked is the tree that umoci makes.
func (c *comparison) unpacked(i randomImage) ([]Node, error) {
	root := c.Path("umoci-" + i.Tag)
	cmd := exec.CommandContext(c.t.Context(), c.umoci, "raw", "unpack", "--image", c.layout+":"+i.Tag, root)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return listing(root)
}

// errPull means that the pull failed, not what came after it.
var errPull = errors.New("pull")

// mounted is the tree that containerd mounts.
func (c *comparison) mounted(containerd *Containerd, i randomImage) (tree []Node, err error) {
	cl, err := client.New(containerd.Socket)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	ctx := namespaces.WithNamespace(c.t.Context(), containerd.Namespace)
	if err := containerd.pullBy(ctx, cl, c.registry.Ref(i.name)); err != nil {
		return nil, fmt.Errorf("%w: %w", errPull, err)
	}
	img, err := cl.GetImage(ctx, c.registry.Ref(i.name))
	if err != nil {
		return nil, err
	}
	diffIDs, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	sn, key := cl.SnapshotService(containerd.Snapshotter), c.Name("view")
	mounts, err := sn.View(ctx, key, identity.ChainID(diffIDs).String())
	if err != nil {
		return nil, err
	}
	defer sn.Remove(context.WithoutCancel(ctx), key)
	dir := c.t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		return nil, err
	}
	defer func() {
		if e := mount.UnmountAll(dir, 0); e != nil {
			c.t.Error(e)
		}
	}()
	return listing(dir)
}

// listing is Tree, after the root directory, and with the first name of every inode that is no directory.
func listing(root string) ([]Node, error) {
	tree, err := Tree(root)
	if err != nil {
		return nil, err
	}
	self := Node{Path: "."}
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return nil, err
	}
	self.Mode, self.UID, self.GID, self.MTime = fmt.Sprintf("%04o", st.Mode&0o7777), int(st.Uid), int(st.Gid),
		st.Mtim.Sec
	if err := self.fill(root, &st); err != nil {
		return nil, err
	}
	tree = append([]Node{self}, tree...)
	first := map[uint64]string{}
	for i := range tree {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, tree[i].Path), &st); err != nil {
			return nil, err
		}
		if f, ok := first[st.Ino]; ok && tree[i].Type != "dir" {
			tree[i].Links = f
		} else {
			first[st.Ino] = tree[i].Path
		}
	}
	return tree, nil
}

// kind is a set of the aspects in which trees differ.
type kind int

const (
	refuses  kind = 1 << iota // it refuses the image, and pull does not
	shape                     // names, types, targets, contents, hard links
	dirAttrs                  // mode, owner, xattrs or time of a directory
	attrs                     // the same of anything else
	anything = refuses | shape | dirAttrs | attrs
)

type difference struct {
	kind kind
	text string
}

// diff compares a peer's tree with Tank's. Neither peer promises times of directories that have no entry of
// their own: a directory with the time at which it was made, later than the start of the test, counts as equal.
func (c *comparison) diff(want, got []Node) (all []difference) {
	theirs := map[string]Node{}
	for _, n := range got {
		theirs[n.Path] = n
	}
	for _, w := range want {
		g, ok := theirs[w.Path]
		delete(theirs, w.Path)
		if w.Type == "dir" && g.Type == "dir" && g.MTime >= c.began.Unix()-1 {
			g.MTime = w.MTime
		}
		if w.Mode == "0755" && w.MTime == 0 && g.Mode == "2755" {
			g.Mode, g.GID = w.Mode, w.GID
		}
		a, b := text(w), text(g)
		switch {
		case !ok:
			all = append(all, difference{shape, fmt.Sprintf("%s: missing, want %s", w.Path, a)})
		case a == b:
		case text(bare(w)) != text(bare(g)):
			all = append(all, difference{shape, fmt.Sprintf("%s\n\t  want %s\n\t  got  %s", w.Path, a, b)})
		case w.Type == "dir":
			all = append(all, difference{dirAttrs, fmt.Sprintf("%s\n\t  want %s\n\t  got  %s", w.Path, a, b)})
		default:
			all = append(all, difference{attrs, fmt.Sprintf("%s\n\t  want %s\n\t  got  %s", w.Path, a, b)})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(theirs)) {
		all = append(all, difference{shape, fmt.Sprintf("%s: got %s", p, text(theirs[p]))})
	}
	return all
}

// bare is a node without attributes.
func bare(n Node) Node {
	n.Mode, n.UID, n.GID, n.MTime, n.XAttrs = "", 0, 0, 0, nil
	return n
}

func text(n Node) string {
	b, err := json.Marshal(n)
	if err != nil {
		return strconv.Quote(err.Error())
	}
	return string(b)
}
