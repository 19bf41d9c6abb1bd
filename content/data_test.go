package content

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/metadata"
)

// slow is a Reader that waits until gate is closed.
type slow struct {
	io.Reader
	gate <-chan struct{}
}

func (s slow) Read(p []byte) (int, error) {
	<-s.gate
	return s.Reader.Read(p)
}

// resumeSlowly opens a writer for the bytes that an earlier writer left. Their hash waits for
// release.
func resumeSlowly(t *testing.T, r *root, left string) (w *writer, release func()) {
	t.Helper()
	w = start(t, r.For(alice), "ref", ocispec.Descriptor{})
	write(t, w, left)
	must(t, w.Close())
	gate := make(chan struct{})
	r.rehash = func(rd io.Reader) io.Reader { return slow{rd, gate} }
	t.Cleanup(func() {
		select {
		case <-gate:
		default:
			close(gate)
		}
	})
	return start(t, r.For(alice), "ref", ocispec.Descriptor{}), func() { close(gate) }
}

// TestResumeAnswersAtOnce shows that Status does not wait for the hash of a resumed ingest, and
// Digest only for a moment.
func TestResumeAnswersAtOnce(t *testing.T) {
	left := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB
	r := open(t, t.TempDir(), nil)
	began := time.Now()
	w, release := resumeSlowly(t, r, left)
	atOnce := func() {
		t.Helper()
		began := time.Now()
		for _, status := range []func() (content.Status, error){
			w.Status, func() (content.Status, error) { return r.For(alice).Status(t.Context(), "ref") },
		} {
			if st, err := status(); err != nil || st.Offset != int64(len(left)) {
				t.Errorf("status %+v, %v", st, err)
			}
		}
		if took := time.Since(began); took > digestWait/2 {
			t.Errorf("status took %v", took)
		}
	}
	atOnce()
	if took := time.Since(began); took > time.Second {
		t.Errorf("opened after %v", took)
	}
	began = time.Now()
	if d := w.Digest(); d != "" {
		t.Errorf("digest %s", d)
	}
	if took := time.Since(began); took < digestWait || took > 2*digestWait {
		t.Errorf("digest took %v", took)
	}
	written := make(chan error, 1)
	go func() {
		_, err := w.Write([]byte("more"))
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("written: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	atOnce()
	release()
	must(t, <-written)
	d := digest.FromString(left + "more")
	if got := w.Digest(); got != d {
		t.Errorf("digest %s, want %s", got, d)
	}
	must(t, w.Commit(t.Context(), int64(len(left))+4, d))
}

// TestEndOfWait shows what ends the methods that wait for a hash which never becomes ready.
func TestEndOfWait(t *testing.T) {
	for name, call := range map[string]func(w *writer) error{
		"Write":  func(w *writer) error { _, err := w.Write([]byte("more")); return err },
		"Sync":   func(w *writer) error { return w.Sync() },
		"Commit": func(w *writer) error { return w.Commit(context.Background(), 0, "") },
	} {
		for event, tc := range map[string]struct {
			end func(r *root, w *writer) error
			is  func(error) bool
		}{
			"Close": {func(_ *root, w *writer) error { return w.Close() }, errdefs.IsFailedPrecondition},
			"Abort": {func(r *root, _ *writer) error {
				return r.For(alice).Abort(context.Background(), "ref")
			}, errdefs.IsAborted},
			"Truncate": {func(_ *root, w *writer) error { return w.Truncate(0) },
				func(err error) bool { return err == nil }},
		} {
			t.Run(name+" "+event, func(t *testing.T) {
				r := open(t, t.TempDir(), nil)
				w, _ := resumeSlowly(t, r, "left")
				ended := make(chan error, 1)
				go func() { ended <- call(w) }()
				select {
				case err := <-ended:
					t.Fatalf("ended early: %v", err)
				case <-time.After(10 * time.Millisecond):
				}
				must(t, tc.end(r, w))
				select {
				case err := <-ended:
					class(t, tc.is, err)
				case <-time.After(10 * time.Second):
					t.Fatal("still waits")
				}
				if event == "Truncate" && name == "Write" && w.Digest() != digest.FromString("more") {
					t.Errorf("digest %s", w.Digest())
				}
			})
		}
	}
}

// TestSlowResumeOverSocket shows that containerd's server and client can do without a digest.
func TestSlowResumeOverSocket(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	w, release := resumeSlowly(t, r, "left")
	must(t, w.Close())
	cs, stop, err := serve(r.For(alice), t.TempDir()+"/s")
	must(t, err)
	defer stop()
	cw, err := cs.Writer(t.Context(), content.WithRef("ref"))
	must(t, err)
	defer cw.Close()
	if st, err := cw.Status(); err != nil || st.Offset != 4 || cw.Digest() != "" {
		t.Errorf("status %+v, %v, digest %q", st, err, cw.Digest())
	}
	time.AfterFunc(10*time.Millisecond, release)
	write(t, cw, " over")
	must(t, cw.Commit(t.Context(), 9, digest.FromString("left over")))
}

// TestFailedRehash shows that a writer whose file cannot be read can only be truncated.
func TestFailedRehash(t *testing.T) {
	for name, tc := range map[string]struct {
		rehash func(io.Reader) io.Reader
		want   error
	}{
		"error": {func(r io.Reader) io.Reader { return io.MultiReader(io.LimitReader(r, 2), failing{}) }, unix.EIO},
		"short": {func(r io.Reader) io.Reader { return io.LimitReader(r, 2) }, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			must(t, closed(t, r.For(alice), "left"))
			r.rehash = tc.rehash
			w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
			if d := w.Digest(); d != "" {
				t.Errorf("digest %s", d)
			}
			if _, err := w.Write([]byte("x")); !errors.Is(err, tc.want) || !errdefs.IsInternal(err) {
				t.Errorf("write: %v", err)
			}
			must(t, w.Truncate(0))
			write(t, w, "anew")
			must(t, w.Commit(t.Context(), 4, digest.FromString("anew")))

			r.rehash = nil
			must(t, closed(t, r.For(alice), "left"))
			r.rehash = tc.rehash
			w = start(t, r.For(alice), "ref", ocispec.Descriptor{})
			if err := w.Commit(t.Context(), 0, ""); !errors.Is(err, tc.want) {
				t.Errorf("commit: %v", err)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, unix.EIO }

// closed writes an ingest and closes its writer without a commit.
func closed(t *testing.T, hs *HolderStore, data string) error {
	t.Helper()
	w := start(t, hs, "ref", ocispec.Descriptor{})
	write(t, w, data)
	return w.Close()
}

// TestCorruptAtFullLength resumes an ingest that has all its bytes, some of them wrong. The commit
// fails and keeps them, and the next writer of the ref can begin anew, as containerd does.
func TestCorruptAtFullLength(t *testing.T) {
	const data = "all of the bytes"
	d := digest.FromString(data)
	desc := ocispec.Descriptor{Size: int64(len(data)), Digest: d}
	for name, front := range map[string]func(t *testing.T, hs *HolderStore) (context.Context, content.Store){
		"view": func(t *testing.T, hs *HolderStore) (context.Context, content.Store) { return t.Context(), hs },
		"socket": func(t *testing.T, hs *HolderStore) (context.Context, content.Store) {
			cs, stop, err := serve(hs, t.TempDir()+"/s")
			must(t, err)
			t.Cleanup(stop)
			return t.Context(), cs
		},
		"containerd": func(t *testing.T, hs *HolderStore) (context.Context, content.Store) {
			cs, stop, err := serve(hs, t.TempDir()+"/s")
			must(t, err)
			t.Cleanup(stop)
			ctx, cs, done, err := underMetadata(t.Context(), cs, t.TempDir()+"/db", func() error { return nil })
			must(t, err)
			t.Cleanup(func() { must(t, done()) })
			return namespaces.WithNamespace(ctx, "default"), cs
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			ctx, cs := front(t, r.For(metadata.Containerd))
			reopen := func(offset int64) content.Writer {
				t.Helper()
				// A server releases the ref some time after its client has closed.
				w, err := content.OpenWriter(ctx, cs, content.WithRef("layer-"+d.String()),
					content.WithDescriptor(desc))
				must(t, err)
				t.Cleanup(func() { w.Close() })
				if st, err := w.Status(); err != nil || st.Offset != offset {
					t.Errorf("resumed at %d, %v", st.Offset, err)
				}
				return w
			}
			w := reopen(0)
			write(t, w, data)
			must(t, w.Close())
			files, err := filepath.Glob(filepath.Join(r.path, "ingest/*/data"))
			if err != nil || len(files) != 1 {
				t.Fatalf("files %v, %v", files, err)
			}
			must(t, os.WriteFile(files[0], []byte("all of the bites"), 0o600))
			for range 2 {
				w = reopen(desc.Size)
				class(t, errdefs.IsFailedPrecondition, w.Commit(ctx, desc.Size, d))
				must(t, w.Close())
			}
			w = reopen(desc.Size)
			if w.Digest() == d {
				t.Error("the digest is right")
			}
			must(t, w.Truncate(0))
			write(t, w, data)
			must(t, w.Commit(ctx, desc.Size, d))
			if b, err := content.ReadBlob(ctx, cs, desc); err != nil || string(b) != data {
				t.Errorf("read %q, %v", b, err)
			}
		})
	}
}

// TestState shows what is below ingest/, with which modes, and that the state is written once.
func TestState(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	r := open(t, t.TempDir(), nil)
	before := time.Now()
	w := start(t, r.For(alice), "a ref", ocispec.Descriptor{Size: 99})
	dir := r.ingestDir(w.stored)
	state, err := os.ReadFile(dir + "/state")
	must(t, err)
	line, stored, _ := bytes.Cut(state, []byte("\n"))
	var head stateHead
	must(t, json.Unmarshal(line, &head))
	if head.Total != 99 || head.Started.Before(before) || head.Started.After(time.Now()) ||
		string(stored) != "pull/alice\x00a ref" {
		t.Errorf("state %q", state)
	}
	first, err := os.Lstat(dir + "/state")
	must(t, err)
	write(t, w, "bytes")
	last, err := w.Status()
	must(t, err)
	must(t, w.Close())
	w = start(t, r.For(alice), "a ref", ocispec.Descriptor{Size: 99})
	st, err := w.Status()
	must(t, err)
	if !st.StartedAt.Equal(head.Started) || !st.UpdatedAt.Equal(last.UpdatedAt) || st.Offset != 5 || st.Total != 99 {
		t.Errorf("resumed with %+v, left with %+v", st, last)
	}
	for name, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "state": 0o600, "data": 0o600} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		must(t, err)
		if fi.Mode() != want {
			t.Errorf("%s: %v, want %v", fi.Name(), fi.Mode(), want)
		}
		if name == "state" && (!fi.ModTime().Equal(first.ModTime()) || !os.SameFile(fi, first)) {
			t.Error("state was written again")
		}
	}
	if names := r.names("ingest/" + filepath.Base(dir)); len(names) != 2 {
		t.Errorf("names %v", names)
	}
}

// TestStatusWhileOpened: until the state of a new ingest is written, there is no such ingest.
func TestStatusWhileOpened(t *testing.T) {
	for _, state := range []string{"", `{"total":9`, "{}\npull/al"} {
		r := open(t, t.TempDir(), nil)
		dir := r.ingestDir(r.For(alice).stored("ref"))
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "state"), []byte(state), 0o600))
		if st, err := r.For(alice).Status(t.Context(), "ref"); !errdefs.IsNotFound(err) {
			t.Errorf("state %q: %+v, %v", state, st, err)
		}
		if sts, err := r.For(alice).ListStatuses(t.Context()); err != nil || len(sts) > 0 {
			t.Errorf("state %q: %+v, %v", state, sts, err)
		}
		w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
		write(t, w, "bytes")
		must(t, w.Close())
		if st, err := r.For(alice).Status(t.Context(), "ref"); err != nil || st.Offset != 5 {
			t.Errorf("state %q: then %+v, %v", state, st, err)
		}
	}
}

// TestResumeWithoutRoot lets the last step of a commit fail for a user who is bound by file modes.
// The data file, which was about to become a read-only blob, must be writable again.
func TestResumeWithoutRoot(t *testing.T) {
	const nobody = 65534
	r := open(t, t.TempDir(), nil)
	if os.Geteuid() == 0 {
		must(t, os.Chmod(filepath.Dir(r.path), 0o711))
		must(t, filepath.WalkDir(r.path, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, nobody, nobody))
		}))
		runtime.LockOSThread() // Setfsuid changes only this thread
		defer runtime.UnlockOSThread()
		must(t, unix.Setfsuid(nobody))
		defer func() { must(t, unix.Setfsuid(0)) }()
	}
	must(t, closed(t, r.For(alice), "left"))
	w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
	blobs := filepath.Join(r.path, "blobs/sha256")
	must(t, os.Chmod(blobs, 0o500))
	if err := w.Commit(t.Context(), 4, ""); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("commit: %v", err)
	}
	must(t, os.Chmod(blobs, 0o700))
	w = start(t, r.For(alice), "ref", ocispec.Descriptor{})
	if st, err := w.Status(); err != nil || st.Offset != 4 {
		t.Errorf("resumed at %d, %v", st.Offset, err)
	}
	write(t, w, " over")
	must(t, w.Commit(t.Context(), 9, digest.FromString("left over")))
}

// TestQuiet shows that a root is used without a word on stderr.
func TestQuiet(t *testing.T) {
	if dir := os.Getenv("CONTENT_TEST_QUIET"); dir != "" {
		r := open(t, dir, nil)
		must(t, closed(t, r.For(alice), "left"))
		w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
		write(t, w, " over")
		must(t, w.Commit(t.Context(), 9, ""))
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestQuiet$")
	cmd.Env = append(os.Environ(), "CONTENT_TEST_QUIET="+t.TempDir())
	var said bytes.Buffer
	cmd.Stderr = &said
	must(t, cmd.Run())
	if said.Len() > 0 {
		t.Errorf("said %q", said.String())
	}
}

// BenchmarkCommit opens, writes and commits blobs of 1 KiB. The database does not sync, because the
// benchmark measures the files.
func BenchmarkCommit(b *testing.B) {
	s := openForBench(b)
	for i := 0; b.Loop(); i++ {
		p := fmt.Appendf(nil, "%01024d", i)
		desc := ocispec.Descriptor{Size: 1024, Digest: digest.FromBytes(p)}
		ref := "layer-" + desc.Digest.String()
		err := content.WriteBlob(b.Context(), s.For(metadata.Containerd), ref, bytes.NewReader(p), desc)
		if err != nil {
			b.Fatal(err)
		}
	}
}

// TestCommitEndsWithItsContext shows that a Commit which waits for the hash ends with its context,
// and that the bytes can be resumed.
func TestCommitEndsWithItsContext(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	w, release := resumeSlowly(t, r, "left")
	ctx, cancel := context.WithCancel(t.Context())
	committed := make(chan error, 1)
	go func() { committed <- w.Commit(ctx, 4, digest.FromString("left")) }()
	time.Sleep(20 * time.Millisecond)
	cancel()
	select {
	case err := <-committed:
		class(t, errdefs.IsCanceled, err)
	case <-time.After(time.Second):
		t.Fatal("it has not ended")
	}
	release()
	w = start(t, r.For(alice), "ref", ocispec.Descriptor{})
	must(t, w.Commit(t.Context(), 4, digest.FromString("left")))
}
