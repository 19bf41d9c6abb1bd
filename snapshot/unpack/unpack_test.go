package unpack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// nobody is the user id of the ordinary user in these tests.
const nobody = 65534

// childEnv is the environment variable that names the directory of prepared cases. It is set if this process is a child
// that extracts them with other rights.
const childEnv = "UNPACK_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := runChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// row is one case of the tables.
type row struct {
	id    string
	items []u.Item
	raw   []byte // the tar, in place of items
	// want is the tree as root. user is the tree as an ordinary user; nil: asUser(want).
	want, user []string
	// notes are the properties of the Result that the tree does not show: flags, implied directories and links to lower
	// layers. Empty: they are not compared.
	notes string
	// err is a part of the message of an ErrInvalidLayer; empty: no error. If user is set, only root gets the error.
	err string
	// confined is a part of the message of an error that occurs only in a user namespace.
	confined string
	// safe: any result is accepted that stays inside the root and is consistent.
	safe bool
	// limits of the extraction
	limits tarlayer.Limits
}

// outcome is the result of one extraction.
type outcome struct {
	Err      string
	Invalid  bool
	Disagree string
	Notes    string
	Tree     []string // as seen from inside the user namespace
}

// mode is one of the ways in which every row is run.
type mode struct {
	name   string
	walk   bool
	user   bool
	userNS bool // root of a user namespace
}

var modes = []mode{
	{name: "root openat2"},
	{name: "root walk", walk: true},
	{name: "user openat2", user: true},
	{name: "user walk", user: true, walk: true},
	{name: "namespace openat2", userNS: true},
	{name: "namespace walk", userNS: true, walk: true},
}

func (m mode) options(l tarlayer.Limits) *unpack.Options {
	o := unpack.Options{Unprivileged: m.user, Confined: m.userNS, Limits: l}
	if m.userNS {
		o.UIDs, o.GIDs = theIDs, theIDs
	}
	if m.walk {
		return o.WithoutOpenat2()
	}
	return &o
}

// skipOrFail skips a test that cannot run on this machine, and fails it in CI.
func skipOrFail(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// TestRows runs every row of the tables in every mode. Beside the root of each row lies a canary that must not change.
func TestRows(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to run the rows with different rights")
	}
	var rows []row
	for _, table := range tables {
		rows = append(rows, table...)
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { runRows(t, m, rows) })
	}
}

func runRows(t *testing.T, m mode, rows []row) {
	base := publicTempDir(t)
	if m.walk { // it is enough to run one of both on the disk
		base = memoryDir(t)
		must(t, os.Chmod(base, 0o755))
	}
	before := make([][]string, len(rows))
	for i, r := range rows {
		before[i] = prepare(t, base, i, m, r)
	}
	outcomes := make([]outcome, len(rows))
	if m.user || m.userNS {
		outcomes = runElsewhere(t, base, len(rows), m)
	} else {
		for i := range rows {
			var err error
			if outcomes[i], err = extractCase(caseDir(base, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, r := range rows {
		t.Run(r.id, func(t *testing.T) {
			dir := caseDir(base, i)
			if after := u.List(t, filepath.Join(dir, "canary")); !reflect.DeepEqual(after, before[i]) {
				t.Errorf("the canary changed:\n%s", strings.Join(after, "\n"))
			}
			judge(t, m, r, outcomes[i], dir)
		})
	}
}

// judge compares an outcome with the expectations of the row.
func judge(t *testing.T, m mode, r row, o outcome, dir string) {
	t.Helper()
	if o.Disagree != "" {
		t.Errorf("Extract and tree.ReadDir disagree: %s", o.Disagree)
	}
	if m.userNS && r.confined != "" {
		if o.Invalid || !strings.Contains(o.Err, r.confined) {
			t.Errorf("error %q, invalid %v, want %q", o.Err, o.Invalid, r.confined)
		}
		return
	}
	if o.Err != "" && !o.Invalid {
		t.Errorf("error of another class: %s", o.Err)
	}
	if r.safe {
		return
	}
	if r.err != "" && !(m.user && r.user != nil) {
		if !strings.Contains(o.Err, r.err) {
			t.Errorf("error %q, want %q", o.Err, r.err)
		}
		return
	}
	if o.Err != "" {
		t.Fatal(o.Err)
	}
	want := r.want
	if m.user {
		if want = r.user; want == nil {
			want = asUser(r.want)
		}
	}
	got := o.Tree
	if m.userNS {
		want = confined(r.want)
	} else {
		got = u.List(t, filepath.Join(dir, "root"))
	}
	if m.user {
		got = withoutOwner(got)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("tree:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.notes != "" && o.Notes != r.notes && (r.user == nil || !m.user) {
		t.Errorf("notes %q, want %q", o.Notes, r.notes)
	}
}

var (
	ownerField   = regexp.MustCompile(` \d+:\d+( |$)`)
	setuidField  = regexp.MustCompile(` ([4-7])(\d{3})( |$)`)
	rootsOnly    = regexp.MustCompile(` (?:trusted|security)\.\S+="(?:[^"\\]|\\.)*"`)
	nobodysField = fmt.Sprintf(" %d:%d", nobody, nobody)
)

// asUser converts the expected tree of root into that of an ordinary user: without owners, setuid bits and the
// attributes that only root can write, and with whiteouts in place of devices.
func asUser(lines []string) []string {
	var out []string
	for _, l := range lines {
		path, rest, _ := strings.Cut(l, " ")
		if strings.HasPrefix(rest, "char") || strings.HasPrefix(rest, "block") {
			out = append(out, path+" whiteout")
			continue
		}
		l = ownerField.ReplaceAllString(l, "$1")
		l = setuidField.ReplaceAllStringFunc(l, func(s string) string {
			s = " " + string(s[1]-4) + s[2:]
			return strings.NewReplacer(" 0755 ", " ", " 0644 ", " ").Replace(s)
		})
		l = rootsOnly.ReplaceAllString(l, "")
		out = append(out, l)
	}
	return out
}

func withoutOwner(lines []string) []string {
	var out []string
	for _, l := range lines {
		if l = strings.Replace(l, nobodysField, "", 1); l != ". dir @0" {
			out = append(out, l)
		}
	}
	return out
}

// publicTempDir returns a temporary directory that an ordinary user can reach.
func publicTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "unpack-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func caseDir(base string, i int) string { return filepath.Join(base, fmt.Sprint(i)) }

// job describes a case in its directory.
type job struct {
	Walk, User, UserNS bool
	Limits             tarlayer.Limits
}

// prepare creates the directory of one case: root/, canary/, the tar and the job. It returns the listing of the canary.
func prepare(t *testing.T, base string, i int, m mode, r row) []string {
	t.Helper()
	dir := caseDir(base, i)
	canary := filepath.Join(dir, "canary")
	for _, d := range []string{dir, filepath.Join(dir, "root"), canary} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(canary, "secret"), []byte("secret"), 0o400))
	must(t, os.WriteFile(filepath.Join(canary, "private"), []byte("private"), 0o600))
	must(t, os.WriteFile(filepath.Join(canary, "su"), []byte("su"), 0o755))
	must(t, os.Mkdir(filepath.Join(canary, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(canary, "etc", "passwd"), []byte("passwd"), 0o644))
	raw := r.raw
	if raw == nil {
		raw = u.Tar(t, aimed(r.items, canary)...)
	}
	must(t, os.WriteFile(filepath.Join(dir, "tar"), raw, 0o644))
	text, err := json.Marshal(job{m.walk, m.user, m.userNS, r.limits})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "job"), text, 0o644))
	if m.user || m.userNS {
		must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			must(t, err)
			return os.Lchown(path, nobody, nobody)
		}))
	}
	must(t, os.Chmod(filepath.Join(canary, "su"), 0o4755))
	return u.List(t, canary)
}

// aimed replaces /CANARY in the items with the path of the canary.
func aimed(items []u.Item, canary string) []u.Item {
	aim := func(s string) string { return strings.ReplaceAll(s, "/CANARY", canary) }
	out := make([]u.Item, len(items))
	for i, it := range items {
		it.Header.Name, it.Header.Linkname = aim(it.Header.Name), aim(it.Header.Linkname)
		out[i] = it
	}
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runElsewhere runs the prepared cases in another process of the test binary: as an ordinary user with a umask that
// removes all permissions, or as root of a user namespace.
func runElsewhere(t *testing.T, base string, n int, m mode) []outcome {
	t.Helper()
	cmd := again(t)
	cmd.Dir = base
	cmd.Env = append(cmd.Env, childEnv+"="+base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if m.userNS {
		cmd.SysProcAttr = namespaceOf(theIDs)
	}
	text, err := cmd.CombinedOutput()
	if m.userNS && len(text) == 0 && err != nil {
		skipOrFail(t, "user namespace: "+err.Error())
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", m.name, err, text)
	}
	outcomes := make([]outcome, n)
	for i := range outcomes {
		text, err := os.ReadFile(filepath.Join(caseDir(base, i), "outcome"))
		must(t, err)
		must(t, json.Unmarshal(text, &outcomes[i]))
	}
	return outcomes
}

// again returns a command that runs a copy of the test binary, which every user may execute.
func again(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	must(t, err)
	defer self.Close()
	exe := filepath.Join(publicTempDir(t), "test")
	out, err := os.OpenFile(exe, os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, self)
	must(t, err)
	must(t, out.Close())
	must(t, os.Chmod(exe, 0o755))
	cmd := exec.Command(exe, args...)
	cmd.Env = []string{"PATH=/bin", "CI=" + os.Getenv("CI")}
	return cmd
}

// runChild extracts the prepared cases below base and writes their outcomes.
func runChild(base string) error {
	for i := 0; ; i++ {
		dir := caseDir(base, i)
		if _, err := os.Stat(dir); err != nil {
			return nil
		}
		o, err := extractCase(dir)
		if err != nil {
			return err
		}
		text, err := json.Marshal(o)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "outcome"), text, 0o644); err != nil {
			return err
		}
	}
}

// extractCase extracts a prepared case.
func extractCase(dir string) (outcome, error) {
	var j job
	text, err := os.ReadFile(filepath.Join(dir, "job"))
	if err != nil {
		return outcome{}, err
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return outcome{}, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "tar"))
	if err != nil {
		return outcome{}, err
	}
	root, err := os.Open(filepath.Join(dir, "root"))
	if err != nil {
		return outcome{}, err
	}
	defer root.Close()
	umask := 0o027
	if j.User {
		umask = 0o777
	}
	old := syscall.Umask(umask)
	defer syscall.Umask(old)
	o := extractAndCompare(root, raw, mode{walk: j.Walk, user: j.User, userNS: j.UserNS}.options(j.Limits))
	if j.UserNS && o.Err == "" {
		o.Tree = u.List(fatalTB{}, filepath.Join(dir, "root"))
	}
	return o, nil
}

// extractAndCompare extracts into root, reads the tree back and compares it with the result.
func extractAndCompare(root *os.File, raw []byte, opts *unpack.Options) outcome {
	in := bytes.NewReader(raw)
	res, err := unpack.Extract(context.Background(), root, in, opts)
	if err != nil {
		o := outcome{Err: err.Error(), Invalid: errors.Is(err, stream.ErrInvalidLayer)}
		if o.Invalid != errdefs.IsFailedPrecondition(err) && !(opts.UIDs != nil && errdefs.IsFailedPrecondition(err)) {
			o.Disagree = "class of " + o.Err
		}
		return o
	}
	o := outcome{Notes: notes(res)}
	if in.Len() != 0 {
		o.Disagree = fmt.Sprintf("%d bytes were not read", in.Len())
	}
	listed, err := tree.ReadDir(root)
	if err != nil {
		o.Disagree = err.Error()
		return o
	}
	if d := difference(res.Entries(), listed); d != "" {
		o.Disagree = d
	}
	return o
}

// difference compares the entries of an extraction with those read from the directory. It returns "" if they are equal.
func difference(extracted, tree []entry.Entry) string {
	var want []entry.Entry
	for _, e := range extracted {
		if e.Type != entry.Link {
			e.Implied, e.Seq = false, 0
			e.Opaque = e.Opaque && e.Type != entry.Whiteout // the disk does not show that a device caused it
			want = append(want, e)
		}
	}
	for i := range min(len(want), len(tree)) {
		if !reflect.DeepEqual(want[i], tree[i]) {
			return fmt.Sprintf("extracted %+v\nfound %+v", want[i], tree[i])
		}
	}
	if len(want) != len(tree) {
		return fmt.Sprintf("%d entries extracted, %d found", len(want), len(tree))
	}
	return ""
}

// notes describes the properties of a result that the tree does not show.
func notes(r *unpack.Result) string {
	var n []string
	if r.Empty {
		n = append(n, "empty")
	}
	if r.HasRootEntry {
		n = append(n, "root")
	}
	if r.NeedsFixup {
		n = append(n, "needs")
	}
	if r.Whiteouts {
		n = append(n, "whiteouts")
	}
	for _, e := range r.Entries() {
		switch {
		case e.Type == entry.Link:
			n = append(n, fmt.Sprintf("link:%s=>%s:%o", e.Path, e.Target, e.Mode))
		case e.Implied && e.Path != ".":
			n = append(n, "implied:"+e.Path)
		}
	}
	return strings.Join(n, " ")
}
