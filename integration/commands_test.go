package integration

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// twin is a node with Tank and a plain containerd with its own overlayfs. Both get the same commands.
type twin struct {
	t           *testing.T
	tank, plain *Containerd
}

// command is one call of ctr. In its arguments $SNAP is the snapshotter and $DIR the directory of the containerd that
// ctr talks to; $OTHERSNAP and $OTHER are those of the other containerd.
type command struct {
	args   string
	output func(string) string // returns the part of stdout to compare; nil: normal
	fails  bool
}

// differing lists patterns of output that always differs, and their replacements: names of snapshotters, times, ages
// and the width of columns.
var differing = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`\b(tank|overlayfs)\b`), "SNAP"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:[0-9:. +A-Z]+`), "TIME"},
	{regexp.MustCompile(
		`elapsed: *\S+ s|total: .*|Less than a second|(\d+|About a) (seconds?|minutes?)|[0-9.]+ ?m?s\b`), "AGE"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

// normal returns output with sorted lines and sorted labels, without what always differs and without the labels that
// only Tank asks for.
func normal(out string) string {
	for _, d := range differing {
		out = d.re.ReplaceAllString(out, d.by)
	}
	all := strings.Split(strings.TrimSpace(out), "\n")
	for i, line := range all {
		if key, labels, ok := strings.Cut(line, "="); ok { // labels come from a map
			labels := strings.Split(key+"="+labels, ",")
			slices.Sort(labels)
			all[i] = strings.Join(
				slices.DeleteFunc(labels, func(l string) bool { return strings.Contains(l, "/snapshot/cri.") }), ",")
		}
	}
	// only Tank asks for these labels
	all = slices.DeleteFunc(all, func(l string) bool { return strings.Contains(l, "/snapshot/cri.") })
	for i := range all {
		all[i] = strings.TrimSuffix(all[i], ",")
	}
	slices.Sort(all) // maps and snapshots have no order
	return strings.Join(all, "\n")
}

// withoutCommitted is normal without the snapshot committed, which may be collected at any time.
func withoutCommitted(out string) string {
	all := strings.Split(normal(out), "\n")
	return strings.Join(slices.DeleteFunc(all, func(l string) bool { return strings.HasPrefix(l, "committed ") }), "\n")
}

// ignored leaves nothing to compare.
func ignored(string) string { return "" }

// sizes is normal without sizes, because file systems differ in the space that directories take.
func sizes(out string) string {
	return regexp.MustCompile(`\b\d+(\.\d+)? ?([KM]i?)?B?\b`).ReplaceAllString(normal(out), "SIZE")
}

// tarList returns the sorted entries of a tar stream, gzip or not, without times.
func tarList(out string) string {
	var r io.Reader = strings.NewReader(out)
	if z, err := gzip.NewReader(bytes.NewReader([]byte(out))); err == nil {
		r = z
	}
	var names []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err.Error()
		}
		b, _ := io.ReadAll(tr)
		names = append(names,
			fmt.Sprintf("%s %c %o %d %d %q %s", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, b))
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// run runs each command with both containerds and compares the results.
func (w *twin) run(commands []command, vars map[string]string) {
	w.t.Helper()
	for _, cmd := range commands {
		var printed [2]string
		for i, c := range []*Containerd{w.tank, w.plain} {
			other := w.plain
			if c == w.plain {
				other = w.tank
			}
			own := map[string]string{"SNAP": c.Snapshotter, "DIR": c.Dir, "OTHER": other.Dir,
				"OTHERSNAP": other.Snapshotter}
			var args []string
			for _, a := range strings.Fields(cmd.args) {
				args = append(args, os.Expand(a, func(name string) string { return cmp.Or(own[name], vars[name]) }))
			}
			res := c.CtrResult(args...)
			for range 4 { // ctr may end before it has written all that containerd sends
				if slices.Index(args, "export") != 1 || isWholeTar(args[2]) {
					break
				}
				res = c.CtrResult(args...)
			}
			if (res.Code != 0) != cmd.fails {
				w.t.Errorf("with %s: %s", c.Snapshotter, res)
			}
			output := cmd.output
			if output == nil {
				output = normal
			}
			printed[i] = strings.ReplaceAll(output(res.Stdout), c.Dir, "DIR")
		}
		if printed[0] != printed[1] {
			w.t.Errorf("ctr %s prints with Tank\n%s\nand with overlayfs\n%s",
				cmd.args, clip(printed[0]), clip(printed[1]))
		}
	}
}

// isWholeTar reports whether a file is a tar up to its end.
func isWholeTar(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	for r := tar.NewReader(f); err == nil; {
		_, err = r.Next()
	}
	return errors.Is(err, io.EOF)
}

// TestCommands: ctr's commands print the same with Tank as with containerd's own overlayfs and content store.
func TestCommands(t *testing.T) {
	t.Parallel()
	e := New(t)
	if err := os.Chmod(e.Dir, 0o711); err != nil { // for containers in user namespaces
		t.Fatal(err)
	}
	k, c, r := e.NewNode()
	w := &twin{t, c, e.NewContainerd(ContainerdOptions{Name: "d", Registries: []*Proxy{r.Proxy}})}
	img, _ := smallImage(t,
		[]Entry{dir("d", 0o755), file("d/one", 0o644, "one\n"), file("d/gone", 0o644, "gone\n")},
		[]Entry{dir("d", 0o755), file("d/.wh.gone", 0, ""), symlink("link", "d/one"),
			file("d/two", 0o600, "two\n", owner(3, 4))})
	r.PushBuilt(img, "test/it:1")
	editor := e.Path("editor")
	if err := errors.Join(os.WriteFile(editor, []byte("#!/bin/sh\necho >> \"$1\"\n"), 0o755),
		//nolint:gosec // it is a program
		os.Mkdir(filepath.Join(w.tank.Dir, "mounted"), 0o755),
		os.Mkdir(filepath.Join(w.plain.Dir, "mounted"), 0o755)); err != nil {
		t.Fatal(err)
	}
	chains := chainIDs(img.Image)
	vars := map[string]string{
		"IMAGE": TestRegistry + "/test/it:1", "HOSTS": filepath.Join(c.Dir, "hosts"), "TOP": chains[2],
		"MIDDLE": chains[1], "BOTTOM": chains[0],
		"MANIFEST": img.Manifest.Digest.String(), "CONFIG": img.Config.Digest.String(),
		"LAYER":    img.Layers[1].Digest.String(),
		"REGISTRY": r.Addr, "ID": e.Name("c"), "EDITOR": editor,
	}
	run := "run --snapshotter $SNAP --runc-root $DIR/runc --fifo-dir $DIR/fifo "
	w.run([]command{
		{args: "images pull --hosts-dir $HOSTS --snapshotter $SNAP $IMAGE", output: ignored},
		{args: "images ls"},
		{args: "images ls -q"},
		{args: "images check --snapshotter $SNAP"},
		{args: "images inspect $IMAGE"},
		{args: "images inspect --content $IMAGE"},
		{args: "images usage --snapshotter $SNAP $IMAGE", output: sizes},
		{args: "images label $IMAGE some=label"},
		{args: "images ls name==$IMAGE"},
		{args: "images label --replace-all $IMAGE other=label"},
		{args: "images ls"},
		{args: "images tag $IMAGE example.org/tagged:1"},
		{args: "images rm example.org/tagged:1"},
		{args: "images rm example.org/none:1"},
		{args: "images pull --local --hosts-dir $HOSTS --snapshotter $SNAP $IMAGE", output: ignored},
		{args: "images check --snapshotter $SNAP"},

		{args: "content ls"},
		{args: "content ls -q"},
		{args: "content get $MANIFEST"},
		{args: "content get $CONFIG"},
		{args: "content get $LAYER", output: tarList},
		{args: "content get sha256:0000000000000000000000000000000000000000000000000000000000000000", fails: true},
		{args: "content label $LAYER some=label"},
		{args: "content ls labels.some==label"},
		{args: "content label $LAYER some="},
		{args: "content edit --editor $EDITOR $CONFIG"},
		{args: "content active"},
		{args: "content fetch-object --hosts-dir $HOSTS $IMAGE"},
		{args: "content fetch-blob --hosts-dir $HOSTS $IMAGE $LAYER", output: tarList},

		{args: "snapshots --snapshotter $SNAP ls"},
		{args: "snapshots --snapshotter $SNAP tree", output: strings.TrimSpace},
		{args: "snapshots --snapshotter $SNAP info $TOP"},
		{args: "snapshots --snapshotter $SNAP info $MIDDLE"},
		{args: "snapshots --snapshotter $SNAP info none", fails: true},
		{args: "snapshots --snapshotter $SNAP usage $TOP", output: sizes},
		{args: "snapshots --snapshotter $SNAP usage", output: sizes},
		{args: "snapshots --snapshotter $SNAP label $TOP some=label"},
		// A view, and a commit of an active snapshot that nothing keeps, exist only until the next collection.
		// Every removal starts one.
		{args: "snapshots --snapshotter $SNAP view a-view $TOP", output: ignored},
		{args: "snapshots --snapshotter $SNAP view a-view $TOP", fails: true},
		{args: "snapshots --snapshotter $SNAP mounts $DIR/at a-view", output: ignored},
		{args: "snapshots --snapshotter $SNAP tree", output: strings.TrimSpace},
		{args: "snapshots --snapshotter $SNAP rm $TOP", fails: true},
		{args: "snapshots --snapshotter $SNAP commit again a-view", fails: true},
		{args: "snapshots --snapshotter $SNAP rm a-view"},
		{args: "snapshots --snapshotter $SNAP prepare of-nothing none", fails: true},
		{args: "snapshots --snapshotter $SNAP prepare an-active $TOP", output: ignored},
		{args: "snapshots --snapshotter $SNAP diff $MIDDLE $TOP", output: tarList},
		{args: "snapshots --snapshotter $SNAP diff $BOTTOM $TOP", output: tarList},
		{args: "snapshots --snapshotter $SNAP diff $TOP an-active", output: tarList},
		{args: "snapshots --snapshotter $SNAP info an-active"},
		{args: "snapshots --snapshotter $SNAP commit committed an-active"},
		{args: "snapshots --snapshotter $SNAP rm none", fails: true},
		{args: "snapshots --snapshotter $SNAP ls", output: withoutCommitted},

		{args: run + "--rm $IMAGE $ID"},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello cat /d/one /link"},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello cat /d/gone", fails: true},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello stat / /d /d/one /d/two /link /usr/bin/hello /tmp"},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello write /d/one changed"},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello cat /d/one"},
		{args: run + "--rm --read-only $IMAGE $ID /usr/bin/hello cat /d/one"},
		{args: run + "--rm --read-only $IMAGE $ID /usr/bin/hello write /d/one changed", fails: true},
		{args: run + "--rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 $IMAGE $ID /usr/bin/hello stat / /d/one " +
			"/d/two"},
		{args: run + "--rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 --remap-labels $IMAGE $ID /usr/bin/hello " +
			"stat / /d/one /d/two"},
		{args: run + "--rm --user 3:4 $IMAGE $ID /usr/bin/hello cat /d/two"},
		{args: run + "--rm --user 5:6 $IMAGE $ID /usr/bin/hello cat /d/two", fails: true},
		{args: run + "--detach --null-io $IMAGE $ID /usr/bin/hello pause"},
		{args: "containers ls"},
		{args: "snapshots --snapshotter $SNAP info $ID"},
		{args: "snapshots --snapshotter $SNAP usage $ID", output: sizes},
		{args: "tasks exec --exec-id one --fifo-dir $DIR/fifo $ID /usr/bin/hello write /tmp/new text"},
		{args: "tasks exec --exec-id two --fifo-dir $DIR/fifo $ID /usr/bin/hello cat /tmp/new"},
		{args: "snapshots --snapshotter $SNAP diff $TOP $ID", output: tarList},
		{args: "tasks rm --force $ID"},
		{args: "containers rm $ID"},

		{args: "images mount --snapshotter $SNAP $IMAGE $DIR/mounted", output: ignored},
		{args: "run --runc-root $DIR/runc --fifo-dir $DIR/fifo --rm --rootfs $DIR/mounted $ID /usr/bin/hello cat " +
			"/d/one"},
		{args: "images unmount --rm --snapshotter $SNAP $DIR/mounted", output: ignored},

		{args: "images convert --uncompress --oci $IMAGE example.org/plain:1"},
		{args: "images ls name==example.org/plain:1"},
		{args: run + "--rm example.org/plain:1 $ID /usr/bin/hello cat /link"}, // unpacks it first
		{args: "images push --hosts-dir $HOSTS --plain-http $REGISTRY/test/pushed-by-$SNAP:1 example.org/plain:1",
			output: ignored},
		{args: "images rm --sync example.org/plain:1"},
		{args: "images rm --sync $IMAGE"},
		{args: "images ls"},
		{args: "content ls"},
		{args: "snapshots --snapshotter $SNAP ls", output: withoutCommitted},

		{args: "content fetch --hosts-dir $HOSTS $IMAGE", output: ignored},
		{args: "images check --snapshotter $SNAP"},
		{args: "snapshots --snapshotter $SNAP unpack $MANIFEST", output: ignored},
		{args: "images check --snapshotter $SNAP"},
		{args: "images export $DIR/exported.tar $IMAGE"},
		{args: "images rm --sync $IMAGE"},
		// the other containerd exported this file
		{args: "images import --snapshotter $SNAP $OTHER/exported.tar", output: ignored},
		{args: "images check --snapshotter $SNAP"},
		{args: "images inspect $IMAGE"},
		{args: run + "--rm $IMAGE $ID /usr/bin/hello cat /link"},
		{args: "content prune references", output: ignored},
		{args: "images rm --sync $IMAGE"},
		// the other containerd pushed this image
		{args: "images pull --plain-http --snapshotter $SNAP $REGISTRY/test/pushed-by-$OTHERSNAP:1", output: ignored},
		{args: run + "--rm $REGISTRY/test/pushed-by-$OTHERSNAP:1 $ID /usr/bin/hello cat /link"},
		{args: "images rm --sync $REGISTRY/test/pushed-by-$OTHERSNAP:1", output: ignored},
		{args: "content ls"},
	}, vars)
	k.MustRun("gc")
	w.tank.Ctr("snapshots", "--snapshotter", "tank", "rm", "committed")
	checkEmpty(t, k)
}

// chainIDs returns the names of an image's snapshots, which are chain IDs, the lowest first.
func chainIDs(img Image) []string {
	var chains []string
	for i := range img.DiffIDs {
		chains = append(chains, topSnapshot(Image{DiffIDs: img.DiffIDs[:i+1]}))
	}
	return chains
}
