package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	dir, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// memoryDir returns a temporary directory in memory if the machine has /dev/shm, and on the disk otherwise. On ext4,
// file creation is slow after many deletions, because it searches for inodes that were not deleted recently.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "unpack-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func userOptions() *unpack.Options {
	return &unpack.Options{Unprivileged: os.Geteuid() != 0, Confined: inNamespace()}
}

// TestTruncated cuts a layer at every byte (B13). Extract must return an error unless only padding, the end of the
// archive or whole entries at the end are missing. A tar does not count its entries, so only the diff ID shows that
// entries are missing.
func TestTruncated(t *testing.T) {
	raw := u.Tar(t, u.D("d"), u.F("d/a", strings.Repeat("x", 700)), u.S("s", "d"), u.H("h", "d/a"), u.W("d/.wh.b"),
		u.F("p", "1").Xattr("user.x", strings.Repeat("y", 300)))
	padding := func(cut int) bool { // the padding of d/a and of the PAX record of p
		return cut >= 2*512+700 && cut < 4*512 || cut >= 8*512+300 && cut < 9*512
	}
	base := memoryDir(t)
	for cut := range raw {
		if cut > 1600 && cut%512 > 2 && cut%512 < 510 {
			continue // similar to other cuts
		}
		root := filepath.Join(base, strconv.Itoa(cut))
		must(t, os.Mkdir(root, 0o700))
		o := extractAndCompare(openDir(t, root), raw[:cut], userOptions())
		if o.Disagree != "" || o.Err != "" && !o.Invalid {
			t.Errorf("cut at %d: %+v", cut, o)
		}
		if o.Err == "" && cut%512 != 0 && !padding(cut) && cut < len(raw)-1024-511 {
			t.Errorf("cut at %d: no error", cut)
		}
	}
}

func TestExtractFaults(t *testing.T) {
	raw := u.Tar(t, u.F("a", strings.Repeat("x", 600)))
	fault := errors.New("connection lost")
	for cut := 0; cut <= len(raw); cut += 100 {
		in := io.MultiReader(bytes.NewReader(raw[:cut]), iotest.ErrReader(fault))
		_, err := unpack.Extract(context.Background(), openDir(t, t.TempDir()), in, userOptions())
		if !errors.Is(err, fault) || errors.Is(err, stream.ErrInvalidLayer) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	_, err := unpack.Extract(context.Background(), openDir(t, dir), bytes.NewReader(raw), nil)
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error for a directory that is not empty: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = unpack.Extract(ctx, openDir(t, t.TempDir()), bytes.NewReader(raw), userOptions())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error after cancellation: %v", err)
	}
}

func TestExtractResult(t *testing.T) {
	dir := t.TempDir()
	res := extractTo(t, dir, u.Tar(t, u.F("b", strings.Repeat("x", 5000)), u.H("a", "b"), u.F("d/c", "1"),
		u.W("d/.wh.x"), u.H("l", "lower/f")))
	var paths []string
	for _, e := range res.Entries() {
		paths = append(paths, e.Path)
	}
	if want := []string{".", "a", "b", "d", "d/c", "d/x", "l"}; !reflect.DeepEqual(paths, want) {
		t.Errorf("paths %q, want %q", paths, want)
	}
	if a, b := res.Entries()[1], res.Entries()[2]; a.Inode != "a" || b.Inode != "a" || a.Hash != b.Hash ||
		a.Size != 5000 || a.Seq != 2 || b.Seq != 1 {
		t.Errorf("hard links %+v and %+v", a, b)
	}
	// two directories, b of two blocks, d/c of one block, one whiteout
	if res.Inodes != 5 || res.Size != 2*4096+8192+4096 {
		t.Errorf("%d bytes in %d inodes", res.Size, res.Inodes)
	}
	if res.Empty || res.HasRootEntry || !res.NeedsFixup || !res.Whiteouts {
		t.Errorf("%+v", res)
	}
}

// TestSparse checks that the holes of a file remain holes on disk.
func TestSparse(t *testing.T) {
	text := "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n33 GNU.sparse.realsize=104857600\n21 GNU.sparse.name=f\n"
	text = strings.Replace(text, "33 ", fmt.Sprint(len("33 GNU.sparse.realsize=104857600\n"))+" ", 1)
	raw := header("x", 'x', len(text), nil)
	raw = append(append(raw, text...), make([]byte, 512-len(text))...)
	raw = append(raw, header("f", '0', 514, nil)...)
	block := make([]byte, 1024)
	copy(block, "1\n104857598\n2\n")
	copy(block[512:], "ab")
	raw = append(append(raw, block...), make([]byte, 1024)...)
	dir := t.TempDir()
	res := extractTo(t, dir, raw)
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dir, "f"), &st))
	if st.Size != 100<<20 || st.Blocks > 64 || res.Entries()[1].Size != st.Size {
		t.Errorf("size %d in %d blocks", st.Size, st.Blocks)
	}
	listed, err := tree.ReadDir(openDir(t, dir))
	must(t, err)
	if d := difference(res.Entries(), listed); d != "" {
		t.Error(d)
	}
}

// TestLinear checks that the time for opaque markers and whiteouts at every level of a wide and deep layer grows
// linearly with the number of entries (B9).
func TestLinear(t *testing.T) {
	build := func(n int) []byte {
		var list []u.Item
		for i := range n {
			d := fmt.Sprintf("d%d/s", i)
			list = append(list, u.W(d+"/.wh..wh..opq"), u.F(d+"/f", ""), u.W(fmt.Sprintf("d%d/.wh.x", i)),
				u.F(fmt.Sprintf("d%d/g", i), ""), u.W(".wh..wh..opq"))
		}
		return u.Tar(t, list...)
	}
	measure := func(n int) time.Duration {
		raw := build(n)
		dir := memoryDir(t)
		start := time.Now()
		extractTo(t, dir, raw)
		return time.Since(start)
	}
	measure(100)
	small, large := measure(200), measure(2000)
	if large > 40*small+200*time.Millisecond {
		t.Errorf("%v for 1,000 entries, %v for 10,000", small, large)
	}
}

// TestSwapped repeatedly exchanges a directory of the layer with a symlink to the canary during the extraction (A10).
// Extract may fail, but the canary must not change.
func TestSwapped(t *testing.T) {
	var list []u.Item
	for i := range 50 {
		list = append(list, u.F(fmt.Sprintf("d/f%d", i%7), "x"), u.D("d").Mode(0o777))
		for j := range 20 { // enough directories that the cached descriptor of d is closed and d is opened again
			list = append(list, u.F(fmt.Sprintf("o%d/f", j), "x"))
		}
	}
	raw := u.Tar(t, list...)
	for _, opts := range []*unpack.Options{userOptions(), userOptions().WithoutOpenat2()} {
		failed, swaps := 0, 0
		for range 10 {
			n, err := swapped(t, raw, opts)
			if swaps += n; err != nil {
				failed++
			}
		}
		t.Logf("%d swaps, %d of 10 extractions failed", swaps, failed)
	}
}

// swapped runs one extraction of TestSwapped. It returns the number of exchanges and the error of Extract.
func swapped(t *testing.T, raw []byte, opts *unpack.Options) (swaps int, err error) {
	base := memoryDir(t)
	canary, root, link := filepath.Join(base, "canary"), filepath.Join(base, "root"), filepath.Join(base, "link")
	must(t, os.Mkdir(canary, 0o700))
	must(t, os.Mkdir(root, 0o700))
	must(t, os.WriteFile(filepath.Join(canary, "f0"), []byte("secret"), 0o600))
	must(t, os.Symlink(canary, link))
	before := u.List(t, canary)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if unix.Renameat2(unix.AT_FDCWD, root+"/d", unix.AT_FDCWD, link, unix.RENAME_EXCHANGE) == nil {
					swaps++
				}
				time.Sleep(20 * time.Microsecond)
			}
		}
	}()
	_, err = unpack.Extract(context.Background(), openDir(t, root), bytes.NewReader(raw), opts)
	close(stop)
	<-done
	if after := u.List(t, canary); !reflect.DeepEqual(after, before) {
		t.Errorf("the canary changed:\n%s", strings.Join(after, "\n"))
	}
	return swaps, err
}

// TestInRoot checks that an absolute symlink is followed below the root, even if its target exists outside.
func TestInRoot(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	target := filepath.Join(outside, "away")
	extractTo(t, dir, u.Tar(t, u.S("o", outside), u.S("e", target), u.F("e/pwn", "1"), u.F("o/x", "2")))
	if data, err := os.ReadFile(filepath.Join(dir, target, "pwn")); err != nil || string(data) != "1" {
		t.Errorf("%q, %v", data, err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) != 0 {
		t.Errorf("files outside the root: %v, %v", names, err)
	}
}

// TestHoleOfMany checks that a hole of 40 GiB costs almost nothing to unpack and to compare, and that the total size of
// holes is limited.
func TestHoleOfMany(t *testing.T) {
	const size = 40 << 30
	raw := u.SparseTar("f", size, u.Piece{At: 5, Data: "begin"}, u.Piece{At: size - 3, Data: "end"})
	dir := t.TempDir()
	res := extractTo(t, dir, raw)
	listed, err := tree.ReadDir(openDir(t, dir))
	must(t, err)
	if d := difference(res.Entries(), listed); d != "" {
		t.Error(d)
	}
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dir, "f"), &st))
	if st.Size != size || st.Blocks > 64 {
		t.Errorf("size %d in %d blocks", st.Size, st.Blocks)
	}
	for _, row := range []struct {
		limit int64
		want  error
	}{{size - 9, stream.ErrInvalidLayer}, {size - 8, nil}} {
		_, err := unpack.Extract(t.Context(), openDir(t, t.TempDir()), bytes.NewReader(raw),
			&unpack.Options{Limits: tarlayer.Limits{Holes: row.limit}})
		if !errors.Is(err, row.want) {
			t.Errorf("limit %d: %v", row.limit, err)
		}
	}
}

// TestSparseAsItIs checks that a small sparse file has the same bytes and hash as the same file without holes.
func TestSparseAsItIs(t *testing.T) {
	pieces := []u.Piece{{At: 3, Data: "abc"}, {At: 5000, Data: strings.Repeat("x", 9000)}, {At: 20000, Data: "yz"}}
	plain := make([]byte, 30000)
	for _, p := range pieces {
		copy(plain[p.At:], p.Data)
	}
	dir := t.TempDir()
	res := extractTo(t, dir, u.SparseTar("f", int64(len(plain)), pieces...))
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	must(t, err)
	if !bytes.Equal(got, plain) || res.Entries()[1].Hash != xxh3.Hash128(plain).Bytes() {
		t.Errorf("other content, or wrong hash %x", res.Entries()[1].Hash)
	}
}
