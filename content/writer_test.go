package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
)

func TestCommitRefuses(t *testing.T) {
	const data = "what was written"
	d := digest.FromString(data)
	for name, tc := range map[string]struct {
		size     int64
		expected digest.Digest
		opts     []content.Opt
		is       func(error) bool
	}{
		"digest":           {0, digest.FromString("other"), nil, errdefs.IsFailedPrecondition},
		"sha512":           {0, digest.SHA512.FromString("other"), nil, errdefs.IsFailedPrecondition},
		"size":             {3, d, nil, errdefs.IsFailedPrecondition},
		"malformed digest": {0, "sha256:x", nil, errdefs.IsInvalidArgument},
		"label": {0, d, []content.Opt{
			content.WithLabels(map[string]string{"k": strings.Repeat("v", 5000)}),
		}, errdefs.IsInvalidArgument},
		"failing option": {0, d, []content.Opt{
			func(*content.Info) error { return errdefs.ErrAborted },
		}, errdefs.IsAborted},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			hs := r.For(alice)
			w := start(t, hs, "ref", ocispec.Descriptor{})
			write(t, w, data)
			class(t, tc.is, w.Commit(t.Context(), tc.size, tc.expected, tc.opts...))
			class(t, errdefs.IsFailedPrecondition, w.Commit(t.Context(), 0, d))
			_, err := w.Write(nil)
			class(t, errdefs.IsFailedPrecondition, err)
			must(t, w.Close())
			if names := r.names("blobs/sha256"); len(names) > 0 {
				t.Errorf("blobs %v", names)
			}
			// The bytes are kept, and can be committed under their real digest.
			w = start(t, hs, "ref", ocispec.Descriptor{})
			if st, err := w.Status(); err != nil || st.Offset != int64(len(data)) || w.Digest() != d {
				t.Errorf("resumed at %d with %s, %v", st.Offset, w.Digest(), err)
			}
			must(t, w.Commit(t.Context(), int64(len(data)), d))
			if names := r.names("ingest"); len(names) > 0 {
				t.Errorf("ingests %v", names)
			}
		})
	}
}

func TestAlgorithms(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		d := alg.FromString("one text")
		w := start(t, hs, "ref", ocispec.Descriptor{Digest: d})
		write(t, w, "one text")
		must(t, w.Commit(t.Context(), 8, d))
		if w.Digest() != d {
			t.Errorf("committed as %s", w.Digest())
		}
		b, err := content.ReadBlob(t.Context(), hs, ocispec.Descriptor{Digest: d})
		if err != nil || string(b) != "one text" {
			t.Errorf("%s: %q, %v", alg, b, err)
		}
	}
	if n := len(digests(t, hs)); n != 3 {
		t.Errorf("%d blobs", n)
	}
}

func TestEmptyBlob(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	w := start(t, hs, "empty", ocispec.Descriptor{})
	must(t, w.Commit(t.Context(), 0, digest.FromString("")))
	if n, ok := r.Size(digest.FromString("")); n != 0 || !ok {
		t.Errorf("size %d, %t", n, ok)
	}
}

// TestDurable shows that the file and its directory are synced before the record is written, and
// that the Write that reaches the announced total syncs the file before it returns.
func TestDurable(t *testing.T) {
	const data = "0123456789"
	d := digest.FromString(data)
	for name, tc := range map[string]struct {
		total  int64
		writes []string
		want   []string // after each write, and after the commit
	}{
		"announced":     {10, []string{"01234", "56789"}, []string{"", "file", "file dir"}},
		"at once":       {10, []string{data}, []string{"file", "file dir"}},
		"not announced": {0, []string{data}, []string{"", "file dir"}},
		"more to come":  {11, []string{data}, []string{"", "file dir"}},
		"went beyond":   {5, []string{"012345", "6789"}, []string{"file", "file file", "file file dir"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			var log []string
			r.fs.Before("sync", "", func(string) { log = append(log, "file") })
			r.fs.Before("syncdir", "", func(path string) {
				if _, err := os.Lstat(r.Path(d)); err != nil || filepath.Dir(r.Path(d)) != path {
					t.Errorf("synced %s too early: %v", path, err)
				}
				if _, ok := r.Size(d); ok {
					t.Error("recorded before it was synced")
				}
				log = append(log, "dir")
			})
			expect := func(want string) {
				t.Helper()
				if got := strings.Join(log, " "); got != want {
					t.Errorf("synced %q, want %q", got, want)
				}
			}
			w := start(t, r.For(alice), "ref", ocispec.Descriptor{Size: tc.total})
			for i, p := range tc.writes {
				write(t, w, p)
				expect(tc.want[i])
			}
			must(t, w.Commit(t.Context(), 10, d))
			expect(tc.want[len(tc.writes)])
		})
	}
}

// TestFailedSync shows that bytes after a failed fsync are never used, even if a later fsync
// succeeds.
func TestFailedSync(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	r.fs.Add(t, "sync: fail EIO")
	w := start(t, hs, "ref", ocispec.Descriptor{Size: 4})
	if _, err := w.Write([]byte("data")); !errors.Is(err, unix.EIO) {
		t.Fatalf("write: %v", err)
	}
	class(t, errdefs.IsAborted, w.Commit(t.Context(), 4, ""))
	w = start(t, hs, "ref", ocispec.Descriptor{Size: 4})
	if st, err := w.Status(); err != nil || st.Offset != 0 {
		t.Errorf("resumed at %d, %v", st.Offset, err)
	}
}

// TestFullDisk shows that a writer whose disk is full can only be closed, and that its bytes do not
// stay on the disk.
func TestFullDisk(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	w := start(t, hs, "ref", ocispec.Descriptor{Size: 8})
	write(t, w, "ab")
	r.fs.Add(t, "write: fail ENOSPC during")
	n, err := w.Write([]byte("cdef"))
	if n != 2 {
		t.Errorf("wrote %d", n)
	}
	class(t, errdefs.IsResourceExhausted, err)
	_, err = w.Write([]byte("x"))
	class(t, errdefs.IsResourceExhausted, err)
	if fi, err := w.f.Stat(); err != nil || fi.Size() != 0 {
		t.Errorf("%d bytes are still on the disk, %v", fi.Size(), err)
	}
	class(t, errdefs.IsResourceExhausted, w.Truncate(0))
	class(t, errdefs.IsResourceExhausted, w.Commit(t.Context(), 0, ""))
	if names := r.names("ingest"); len(names) > 0 {
		t.Errorf("left %v", names)
	}

	w = start(t, hs, "ref", ocispec.Descriptor{Size: 8})
	write(t, w, "abcdefgh")
	must(t, w.Commit(t.Context(), 8, digest.FromString("abcdefgh")))
}

func TestTruncate(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
	write(t, w, "long bytes to be forgotten")
	class(t, errdefs.IsInvalidArgument, w.Truncate(4))
	class(t, errdefs.IsInvalidArgument, w.Truncate(-1))
	must(t, w.Truncate(0))
	write(t, w, "short")
	must(t, w.Commit(t.Context(), 5, digest.FromString("short")))
	class(t, errdefs.IsFailedPrecondition, w.Truncate(0))
}

var hostileRefs = []string{
	"../../../etc/passwd", "/", ".", "..", "a/../b", "x\x00y", "\x00", "pull/bob\x00shared", "\xff\xfe",
	"new\nline", " ", strings.Repeat("long/", 4000), "blobs/sha256", "shared",
}

// TestRefs lets two holders write the same hostile refs at once.
func TestRefs(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	stores := []*HolderStore{r.For(alice), r.For(bob)}
	ws := map[string]*writer{}
	for _, hs := range stores {
		for _, ref := range hostileRefs {
			w := start(t, hs, ref, ocispec.Descriptor{Size: 1 << 20})
			write(t, w, string(hs.holder)+ref)
			ws[string(hs.holder)+"|"+ref] = w
			_, err := hs.Writer(t.Context(), content.WithRef(ref))
			class(t, errdefs.IsUnavailable, err)
		}
		_, err := hs.Writer(t.Context())
		class(t, errdefs.IsInvalidArgument, err)
	}
	if n := len(r.names("ingest")); n != 2*len(hostileRefs) {
		t.Errorf("%d directories", n)
	}
	for _, hs := range stores {
		var refs []string
		sts, err := hs.ListStatuses(t.Context())
		must(t, err)
		for _, st := range sts {
			refs = append(refs, st.Ref)
			if want := int64(len(string(hs.holder) + st.Ref)); st.Offset != want || st.Total != 1<<20 {
				t.Errorf("%.20q: %d of %d bytes, want %d", st.Ref, st.Offset, st.Total, want)
			}
			if one, err := hs.Status(t.Context(), st.Ref); err != nil || one != st {
				t.Errorf("%.20q: status %v, %v, want %v", st.Ref, one, err, st)
			}
		}
		want := slices.Sorted(slices.Values(hostileRefs))
		if slices.Sort(refs); !slices.Equal(refs, want) {
			t.Errorf("listed %.300q", refs)
		}
		refs = nil
		must(t, hs.WalkStatusRefs(t.Context(), func(ref string) error { refs = append(refs, ref); return nil }))
		if slices.Sort(refs); !slices.Equal(refs, want) {
			t.Errorf("walked %.300q", refs)
		}
	}
	for _, ref := range hostileRefs { // an abort of one holder does not affect the other
		must(t, stores[0].Abort(t.Context(), ref))
		class(t, errdefs.IsNotFound, stores[0].Abort(t.Context(), ref))
		_, err := stores[0].Status(t.Context(), ref)
		class(t, errdefs.IsNotFound, err)
		_, err = ws[string(alice)+"|"+ref].Write([]byte("x"))
		class(t, errdefs.IsAborted, err)
		class(t, errdefs.IsAborted, ws[string(alice)+"|"+ref].Commit(t.Context(), 0, ""))
		must(t, ws[string(bob)+"|"+ref].Commit(t.Context(), 0, digest.FromString(string(bob)+ref)))
	}
	if names := r.names("ingest"); len(names) > 0 {
		t.Errorf("left %v", names)
	}
	if n := len(digests(t, stores[1])); n != len(hostileRefs) || len(digests(t, stores[0])) > 0 {
		t.Errorf("%d blobs", n)
	}
}

func TestListStatusesFilters(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	for _, ref := range []string{"layer-1", "layer-2", "config"} {
		must(t, start(t, hs, ref, ocispec.Descriptor{}).Close())
	}
	for filter, want := range map[string]int{"": 3, "ref==config": 1, "ref~=^layer-": 2, "ref==pull/alice": 0} {
		var fs []string
		if filter != "" {
			fs = []string{filter}
		}
		if sts, err := hs.ListStatuses(t.Context(), fs...); err != nil || len(sts) != want {
			t.Errorf("%q: %v, %v", filter, sts, err)
		}
	}
	_, err := hs.ListStatuses(t.Context(), "==")
	class(t, errdefs.IsInvalidArgument, err)
}

// TestAbortedWriter shows that an abort under an open writer leaves nothing, and that the ref is
// free once the writer is closed.
func TestAbortedWriter(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	w := start(t, hs, "ref", ocispec.Descriptor{})
	write(t, w, "some bytes")
	must(t, hs.Abort(t.Context(), "ref"))
	_, err := hs.Writer(t.Context(), content.WithRef("ref"))
	class(t, errdefs.IsUnavailable, err)
	class(t, errdefs.IsAborted, w.Truncate(0))
	must(t, w.Close())
	if names := r.names("ingest"); len(names) > 0 {
		t.Errorf("left %v", names)
	}
	w = start(t, hs, "ref", ocispec.Descriptor{})
	write(t, w, "others")
	must(t, w.Commit(t.Context(), 0, digest.FromString("others")))
}

// TestUnreadable opens writers of a ref whose directory is damaged. Nothing of it is kept, and no
// link is followed.
func TestUnreadable(t *testing.T) {
	const (
		old    = "0123456789 bytes of an earlier writer"
		stored = "pull/alice\x00ref"
		head   = `{"total":99,"started":"2026-01-02T03:04:05Z"}`
	)
	type damage = func(t *testing.T, dir string)
	without := func(name string) damage {
		return func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, name))) }
	}
	instead := func(name string, make func(path string) error) damage {
		return func(t *testing.T, dir string) {
			without(name)(t, dir)
			must(t, make(filepath.Join(dir, name)))
		}
	}
	fifo := func(name string) damage {
		return instead(name, func(path string) error { return unix.Mkfifo(path, 0o600) })
	}
	folder := func(name string) damage {
		return instead(name, func(path string) error { return os.Mkdir(path, 0o700) })
	}
	link := func(name, to string) damage {
		return instead(name, func(path string) error { return os.Symlink(to, path) })
	}
	state := func(text string) damage {
		return instead("state", func(path string) error { return os.WriteFile(path, []byte(text), 0o600) })
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for name, tc := range map[string]struct {
		damage damage
		total  int64
	}{
		"other total": {func(*testing.T, string) {}, 5},
		"empty": {func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir))
			must(t, os.Mkdir(dir, 0o700))
		}, 0},
		"file": {func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir))
			must(t, os.WriteFile(dir, nil, 0o600))
		}, 0},
		"link": {func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+"0"))
			must(t, os.Symlink(dir+"0", dir))
		}, 0},

		"no data":        {without("data"), 0},
		"data is link":   {link("data", secret), 0},
		"data is FIFO":   {fifo("data"), 0},
		"data is folder": {folder("data"), 0},

		"no state": {without("state"), 0},
		"state is link": {func(t *testing.T, dir string) { // to a valid state
			must(t, os.Rename(dir+"/state", dir+"/other"))
			must(t, os.Symlink("other", dir+"/state"))
		}, 0},
		"state is FIFO":   {fifo("state"), 0},
		"state is folder": {folder("state"), 0},
		"state is large":  {func(t *testing.T, dir string) { must(t, os.Truncate(dir+"/state", maxSmall+1)) }, 0},
		"empty state":     {state(""), 0},
		"cut in the head": {state(`{"total":99,"star`), 0},
		"cut ref":         {state(head + "\npull/ali"), 0},
		"other ref":       {state(head + "\npull/alice\x00other"), 0},
		"longer ref":      {state(head + "\n" + stored + "\n"), 0},
		"no line":         {state(stored), 0},
		"no JSON":         {state("99\n" + stored), 0},
		"no time":         {state(`{"total":99}` + "\n" + stored), 0},
		"malformed time":  {state(`{"total":99,"started":"20"}` + "\n" + stored), 0},
		"negative total":  {state(strings.Replace(head, "99", "-9", 1) + "\n" + stored), 0},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(secret, []byte("secret"), 0o600))
			r := open(t, t.TempDir(), nil)
			hs := r.For(alice)
			w := start(t, hs, "ref", ocispec.Descriptor{Size: 99})
			write(t, w, old)
			must(t, w.Close())
			tc.damage(t, r.ingestDir(w.stored))
			if name != "other total" {
				if sts, err := hs.ListStatuses(t.Context()); err != nil || len(sts) > 0 {
					t.Errorf("listed %v, %v", sts, err)
				}
			}
			w = start(t, hs, "ref", ocispec.Descriptor{Size: tc.total})
			if st, err := w.Status(); err != nil || st.Offset != 0 || st.Total != tc.total {
				t.Errorf("status %+v, %v", st, err)
			}
			write(t, w, "fresh")
			must(t, w.Commit(t.Context(), 5, digest.FromString("fresh")))
			if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
				t.Errorf("the link's target is %q, %v", b, err)
			}
			_, err := r.Sweep(t.Context())
			must(t, err)
			if names := r.names("ingest"); len(names) > 0 {
				t.Errorf("left %v", names)
			}
		})
	}
}

// TestFailedOpen shows that the ref is free again after Writer failed.
func TestFailedOpen(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	hs := r.For(alice)
	for name, tc := range map[string]struct {
		fault string // if it makes an operation hang, the ingest is aborted meanwhile
		is    func(error) bool
	}{
		"disk":           {"any ingest/*/data #1+: fail EIO", errdefs.IsInternal},
		"full":           {"any ingest/*/data #1+: fail ENOSPC", errdefs.IsResourceExhausted},
		"aborted before": {"open ingest/*/data: hang", errdefs.IsAborted},
		"aborted after":  {"open ingest/*/data: hang after", errdefs.IsAborted},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, start(t, hs, "ref", ocispec.Descriptor{}).Close())
			r.fs.Add(t, tc.fault)
			opened := make(chan error, 1)
			go func() {
				_, err := hs.Writer(t.Context(), content.WithRef("ref"))
				opened <- err
			}()
			var err error
			select {
			case err = <-opened:
			case <-r.fs.Hung():
				must(t, hs.Abort(t.Context(), "ref"))
				r.fs.Release()
				err = <-opened
			}
			class(t, tc.is, err)
			if names := r.names("ingest"); len(names) > 0 && errdefs.IsAborted(err) {
				t.Errorf("left %v", names)
			}
			r.fs.Clear()
			must(t, start(t, hs, "ref", ocispec.Descriptor{}).Close())
		})
	}
	// A lack of descriptors does not mean that the ingest is damaged.
	w := start(t, hs, "ref", ocispec.Descriptor{})
	write(t, w, "kept")
	must(t, w.Close())
	r.fs.Add(t, "open ingest/*/data: fail EMFILE")
	if _, err := hs.Writer(t.Context(), content.WithRef("ref")); !errors.Is(err, unix.EMFILE) {
		t.Errorf("opened: %v", err)
	}
	if st, err := start(t, hs, "ref", ocispec.Descriptor{}).Status(); err != nil || st.Offset != 4 {
		t.Errorf("resumed at %d, %v", st.Offset, err)
	}
}

// TestResumeAfterKill kills a process in the middle of a write.
func TestResumeAfterKill(t *testing.T) {
	if dir := os.Getenv("CONTENT_TEST_WRITE"); dir != "" {
		db, err := metadata.Open(filepath.Join(dir, "metadata.db"), nil)
		must(t, err)
		s, err := Open(dir, db, nil)
		must(t, err)
		w := start(t, s.For(bob), "ref", ocispec.Descriptor{Size: 1 << 30})
		fmt.Println("writing")
		for {
			write(t, w, "0123456789")
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestResumeAfterKill$")
	cmd.Env = append(os.Environ(), "CONTENT_TEST_WRITE="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("writing\n")))
	must(t, err)
	for { // until something was written
		if m, _ := filepath.Glob(filepath.Join(dir, "ingest/*/data")); len(m) == 1 {
			if fi, err := os.Stat(m[0]); err == nil && fi.Size() > 1000 {
				break
			}
		}
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()

	r := open(t, dir, nil)
	hs := r.For(bob)
	st, err := hs.Status(t.Context(), "ref")
	must(t, err)
	want := strings.Repeat("0123456789", int(st.Offset)/10+1)[:st.Offset]
	w := start(t, hs, "ref", ocispec.Descriptor{Size: 1 << 30})
	resumed, err := w.Status()
	if err != nil || resumed.Offset != st.Offset || resumed.Total != 1<<30 || resumed.Offset < 1000 {
		t.Fatalf("resumed at %d of %d, listed at %d: %v", resumed.Offset, resumed.Total, st.Offset, err)
	}
	if d := digest.FromString(want); w.Digest() != d {
		t.Fatalf("resumed with %s, want %s", w.Digest(), d)
	}
	write(t, w, "the end")
	must(t, w.Commit(context.Background(), 0, digest.FromString(want+"the end")))
}
