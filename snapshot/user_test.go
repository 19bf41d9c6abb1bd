package snapshot_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
	"github.com/tank-snapshotter/tank/snapshot/layer"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// nobody is the user id of the ordinary user in these tests.
const nobody = 65534

// userLeavesOut reports whether an ordinary user may accept the row although root refuses it: it has a hard link, whose
// missing target may be a device that was left out.
func (row stackRow) userLeavesOut() bool {
	if row.wantErr == nil {
		return false
	}
	for _, items := range row.layers {
		for _, i := range items {
			if i.Header.Typeflag == tar.TypeLink {
				return true
			}
		}
	}
	return false
}

// rootfsOf is the child's report about one tree.
type rootfsOf struct {
	Path    string
	Refused bool
	Err     string
}

// userRows returns the rows that TestUser assembles as an ordinary user.
func userRows() []stackRow {
	return slices.Concat(stackRows, breakoutRows, hostileRows, entryRows, []stackRow{
		{"directories without write permission",
			[][]Item{{D("./").Mode(0o555), D("d").Mode(0o555), F("d/a", "1"), D("d/e").Mode(0o555), F("d/e/x", "2")},
				{D("./").Mode(0o111), F("f", "5"), D("d").Mode(0o555), F("d/b", "3"), D("d/g").Mode(0o555),
					F("d/g/y", "4")}},
			[]string{". dir 0111", "d dir 0555", `d/a file "1"`, `d/b file "3"`, "d/e dir 0555",
				`d/e/x file "2"`, "d/g dir 0555", `d/g/y file "4"`, `f file "5"`}, nil},
		{"files and directories that their owner cannot read",
			[][]Item{{D("./").Mode(0o311), D("d").Mode(0), F("d/a", "1").Mode(0o200), D("d/e").Mode(0o500),
				F("d/e/x", "2"), H("h", "d/a").Mode(0o200)},
				{F("f", "4")}},
			[]string{". dir 0311", "d dir 0000", `d/a file 0200 "1"`, "d/e dir 0500", `d/e/x file "2"`, `f file "4"`,
				`h file 0200 "1" = d/a`}, nil},
	})
}

// userWays are the ways in which an ordinary user assembles a row.
var userWays = []string{"copied", "moved", "prepared"}

// TestUser assembles every row in a process of an ordinary user.
func TestUser(t *testing.T) {
	requireRoot(t)
	base := publicDir(t)
	must(t, os.Chown(base, nobody, nobody))
	cmd := again(t, userChild, base, "^TestUserChild$")
	cmd.Env = append(cmd.Env, "TMPDIR="+base, "HOME="+base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("as user %d: %v\n%s", nobody, err, out)
	}
	text, err := os.ReadFile(filepath.Join(base, "answers"))
	must(t, err)
	var answers map[string]rootfsOf
	must(t, json.Unmarshal(text, &answers))
	for i, row := range userRows() {
		for _, way := range userWays {
			t.Run(row.testName+"/"+way, func(t *testing.T) {
				a := answers[fmt.Sprintf("%d %s", i, way)]
				switch {
				case a.Err != "":
					t.Fatal(a.Err)
				case !a.Refused && row.userLeavesOut(): // the target of the hard link may be a device that was left out
					return
				case a.Refused != (row.wantErr != nil):
					t.Fatalf("refused: %v, want %v", a.Refused, !a.Refused)
				case a.Refused:
					return
				}
				want := row.want
				if way == "prepared" {
					want = underContainerd(want)
				}
				compare(t, withoutOwner(List(t, a.Path)), nil, asUser(want), nil)
			})
		}
	}
}

// TestUserChild runs as the child process of TestUser.
func TestUserChild(t *testing.T) {
	base, ok := childOf(userChild)
	if !ok {
		t.Skip("TestUser runs it")
	}
	syscall.Umask(0o077)
	answers := map[string]rootfsOf{}
	for i, row := range userRows() {
		for _, way := range userWays {
			name := fmt.Sprintf("%d %s", i, way)
			root := filepath.Join(base, name)
			must(t, os.Mkdir(root, 0o700))
			path, err := userPut(t, root, row.layers, way)
			switch {
			case errdefs.IsFailedPrecondition(err):
				answers[name] = rootfsOf{Refused: true}
			case err != nil:
				answers[name] = rootfsOf{Err: err.Error()}
			default:
				answers[name] = rootfsOf{Path: path}
			}
		}
	}
	text, err := json.Marshal(answers)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(base, "answers"), text, 0o644))
}

// userPut assembles layers and returns the path of the tree.
func userPut(t *testing.T, root string, lists [][]Item, way string) (path string, err error) {
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true})
	if err != nil {
		return "", err
	}
	blobs := memory{}
	s, err := snapshot.Open(root, db, blobs, &snapshot.Options{
		SyncDelay: -1, Unpack: unpack.Options{Unprivileged: true}, UserXattr: true, Directory: way == "prepared",
	})
	if err != nil {
		return "", err
	}
	defer func() {
		report := func(err metadata.Fault) { t.Errorf("%s: %v", root, err) }
		err = errors.Join(err, s.Check(ctx, report), db.Check(report), s.Close(), db.Close())
	}()
	var layers []layer.Pair
	for _, items := range lists {
		layers = append(layers, blobs.add(t, Tar(t, items...)))
	}
	if way == "prepared" {
		return userPrepared(t, s, layers)
	}
	var recs []metadata.Layer
	for _, l := range layers {
		rec, err := s.Layers().Unpack(ctx, holder, l)
		if err != nil {
			return "", err
		}
		recs = append(recs, rec)
	}
	return s.Layers().Assemble(ctx, holder, digest.FromString("m"), recs,
		&layer.AssembleOptions{Consume: way == "moved", NoSync: true})
}

// userPrepared prepares two containers above the layers, one after the other, and returns the path of the second.
func userPrepared(t *testing.T, s *snapshot.Store, layers []layer.Pair) (path string, err error) {
	sn := s.For(holder)
	top, err := extract(ctx, sn, &world{Store: s}, layers, false, "ns")
	if err != nil {
		return "", err
	}
	for _, key := range []string{"first", "second"} {
		mounts, err := sn.Prepare(ctx, key, top)
		if err != nil {
			return "", err
		}
		path = bound(t, mounts, "rw")
	}
	return path, nil
}

var (
	ownerField  = regexp.MustCompile(` \d+:\d+( |$)`)
	setuidField = regexp.MustCompile(` ([4-7])(\d{3})( |$)`)
	rootsOnly   = regexp.MustCompile(` (?:trusted|security)\.\S+="(?:[^"\\]|\\.)*"`)
)

// asUser converts the expected tree of root into that of an ordinary user: the user owns everything, setuid bits are
// cleared, and devices and the attributes that only root can write are left out.
func asUser(lines []string) (out []string) {
	for _, l := range lines {
		_, rest, _ := strings.Cut(l, " ")
		if strings.HasPrefix(rest, "char") || strings.HasPrefix(rest, "block") {
			continue
		}
		l = ownerField.ReplaceAllString(l, "$1")
		l = setuidField.ReplaceAllStringFunc(l, func(s string) string { return fmt.Sprintf(" %c%s", s[1]-4, s[2:]) })
		l = rootsOnly.ReplaceAllString(l, "")
		if l = usualMode(l); l != ". dir @0" {
			out = append(out, l)
		}
	}
	return out
}

// usualMode removes the default modes from a line, as List does.
func usualMode(line string) string {
	path, rest, _ := strings.Cut(line, " ")
	rest = strings.Replace(strings.Replace(rest, "dir 0755", "dir", 1), "file 0644", "file", 1)
	return path + " " + rest
}

func withoutOwner(lines []string) (out []string) {
	for _, l := range lines {
		if l = strings.Replace(l, fmt.Sprintf(" %d:%d", nobody, nobody), "", 1); l != ". dir @0" {
			out = append(out, l)
		}
	}
	return out
}
