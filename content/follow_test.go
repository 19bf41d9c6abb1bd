package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestFollowEnds follows an ingest of which half is written, and shows how each end of the ingest
// ends the reader.
func TestFollowEnds(t *testing.T) {
	const data = "first half, second half"
	d := digest.FromString(data)
	half := len(data) / 2
	for name, tc := range map[string]struct {
		then func(t *testing.T, r *root, w *writer) error
		want string
		is   func(error) bool // nil: EOF
	}{
		"commit": {func(t *testing.T, r *root, w *writer) error {
			write(t, w, data[half:])
			return w.Commit(t.Context(), 0, d)
		}, data, nil},
		"commit without digest": {func(t *testing.T, r *root, w *writer) error {
			write(t, w, data[half:])
			return w.Commit(t.Context(), 0, "")
		}, data, nil},
		"commit of what exists": {func(t *testing.T, r *root, w *writer) error {
			put(t, r.For(bob), data)
			write(t, w, data[half:])
			if err := w.Commit(t.Context(), 0, d); !errdefs.IsAlreadyExists(err) {
				return fmt.Errorf("commit: %w", err)
			}
			return nil
		}, data, nil},
		"commit as something else": {func(t *testing.T, r *root, w *writer) error {
			write(t, w, "something else")
			return w.Commit(t.Context(), 0, "")
		}, data[:half], errdefs.IsUnavailable},
		"commit fails": {func(t *testing.T, r *root, w *writer) error {
			if err := w.Commit(t.Context(), 0, d); !errdefs.IsFailedPrecondition(err) {
				return fmt.Errorf("commit: %w", err)
			}
			return nil
		}, data[:half], errdefs.IsUnavailable},
		"truncate": {func(t *testing.T, r *root, w *writer) error {
			if err := w.Truncate(0); err != nil {
				return err
			}
			write(t, w, "other bytes of a longer length")
			return nil
		}, data[:half], errdefs.IsUnavailable},
		"abort": {func(t *testing.T, r *root, w *writer) error { return r.For(alice).Abort(t.Context(), w.ref) },
			data[:half], errdefs.IsUnavailable},
		"close": {func(t *testing.T, r *root, w *writer) error { return w.Close() }, data[:half],
			errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			w := start(t, r.For(alice), "default/1/layer-"+d.String(), ocispec.Descriptor{})
			write(t, w, data[:half])
			waits, err := r.Open(t.Context(), d)
			must(t, err)
			defer waits.Close()
			late, err := r.Open(t.Context(), d)
			must(t, err)
			defer late.Close()

			head := make([]byte, half)
			_, err = io.ReadFull(waits, head)
			must(t, err)
			done := make(chan error, 1)
			go func() {
				time.Sleep(20 * time.Millisecond) // so that the reader waits
				done <- tc.then(t, r, w)
			}()
			rest, err := io.ReadAll(waits)
			must(t, <-done)
			if got := string(head) + string(rest); got != tc.want &&
				(tc.is == nil || got != data[:half]+"something else") {
				t.Errorf("read %q", got)
			}
			if tc.is == nil {
				must(t, err)
			} else {
				class(t, tc.is, err)
			}
			// A reader that reads only afterwards never gets bytes that were written after a
			// truncation.
			got, err := io.ReadAll(late)
			if tc.is == nil {
				must(t, err)
				if string(got) != data {
					t.Errorf("late reader read %q", got)
				}
			} else {
				class(t, tc.is, err)
				if len(got) > 0 {
					t.Errorf("late reader read %q", got)
				}
			}
		})
	}
}

// TestFollowSlowWriter follows an ingest in several goroutines, through a resumption of its writer.
func TestFollowSlowWriter(t *testing.T) {
	data := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(data)
	d := digest.FromBytes(data)
	opened := make(chan digest.Digest, 2)
	r := open(t, t.TempDir(), &Options{OnIngest: func(d digest.Digest) { opened <- d }})
	hs := r.For(alice)
	desc := ocispec.Descriptor{Size: int64(len(data)), Digest: d}

	w := start(t, hs, "ref", desc)
	write(t, w, string(data[:1<<20]))
	must(t, w.Close())
	_, err := r.Open(t.Context(), d)
	class(t, errdefs.IsNotFound, err) // no writer is open

	w = start(t, hs, "ref", desc)
	for range 2 {
		if got := <-opened; got != d {
			t.Errorf("OnIngest was called for %s", got)
		}
	}
	var wg sync.WaitGroup
	follow := func() {
		f, err := r.Open(t.Context(), d)
		must(t, err)
		wg.Go(func() {
			defer f.Close()
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("reader read %d bytes, %v", len(got), err)
			}
		})
	}
	for off := 1 << 20; off < len(data); off += 256 << 10 {
		follow()
		write(t, w, string(data[off:off+256<<10]))
		time.Sleep(time.Millisecond)
	}
	follow()
	must(t, w.Commit(t.Context(), desc.Size, d))
	follow()
	wg.Wait()
	if n := r.ingests.Len(); n > 0 {
		t.Errorf("%d ingests still known", n)
	}
}

func TestFollowPrefersTheFurthest(t *testing.T) {
	d := digest.FromString("the whole blob")
	r := open(t, t.TempDir(), nil)
	for h, part := range map[*HolderStore]string{r.For(alice): "the", r.For(bob): "the whole"} {
		write(t, start(t, h, "layer-"+d.String(), ocispec.Descriptor{}), part)
	}
	f, err := r.Open(t.Context(), d)
	must(t, err)
	defer f.Close()
	p := make([]byte, 9)
	if n, err := io.ReadFull(f, p); err != nil || string(p[:n]) != "the whole" {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

func TestFollowUnblocks(t *testing.T) {
	d := digest.FromString("never written")
	r := open(t, t.TempDir(), nil)
	start(t, r.For(alice), d.String(), ocispec.Descriptor{})
	gone := errors.New("gone home")
	for name, tc := range map[string]struct {
		unblock func(io.Closer, context.CancelCauseFunc)
		want    error
	}{
		"context": {func(_ io.Closer, cancel context.CancelCauseFunc) { cancel(gone) }, gone},
		"close":   {func(f io.Closer, _ context.CancelCauseFunc) { f.Close() }, fs.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			f, err := r.Open(ctx, d)
			must(t, err)
			defer f.Close()
			time.AfterFunc(10*time.Millisecond, func() { tc.unblock(f, cancel) })
			for range 2 {
				if _, err := f.Read(make([]byte, 1)); !errors.Is(err, tc.want) {
					t.Errorf("read: %v", err)
				}
			}
		})
	}
}

// TestFollowSuperseded follows a slow download of a blob that another writer commits.
func TestFollowSuperseded(t *testing.T) {
	data := strings.Repeat("0123456789abcdef", 100_000)
	d := digest.FromString(data)
	half := len(data) / 2
	for name, tc := range map[string]struct {
		begins string                                 // what the slow writer has written
		then   func(t *testing.T, r *root, w *writer) // after the commit, before the reader goes on
		whole  bool                                   // the reader gets the blob
	}{
		"same bytes":  {data[:half], func(*testing.T, *root, *writer) {}, true},
		"other bytes": {"x" + data[1:half], func(*testing.T, *root, *writer) {}, false},
		"none":        {"", func(*testing.T, *root, *writer) {}, true},
		"it goes on": {data[:half], func(t *testing.T, _ *root, w *writer) { write(t, w, data[half:half+10]) },
			true},
		"it lies later": {data[:half], func(t *testing.T, _ *root, w *writer) { write(t, w, "lies") }, true},
		"truncated":     {data[:half], func(t *testing.T, _ *root, w *writer) { must(t, w.Truncate(0)) }, false},
		"made right meanwhile": {"x" + data[1:half], func(t *testing.T, _ *root, w *writer) {
			must(t, w.Truncate(0))
			write(t, w, data[:half])
		}, false},
		"aborted": {data[:half], func(t *testing.T, r *root, w *writer) {
			must(t, r.For(alice).Abort(t.Context(), w.ref))
		}, false},
		"removed": {data[:half], func(t *testing.T, r *root, _ *writer) { must(t, r.For(bob).Delete(t.Context(), d)) },
			false},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			slow := start(t, r.For(alice), "layer-"+d.String(), ocispec.Descriptor{Size: int64(len(data))})
			write(t, slow, tc.begins)
			f, err := r.Open(t.Context(), d)
			must(t, err)
			defer f.Close()
			head := make([]byte, len(tc.begins))
			_, err = io.ReadFull(f, head)
			must(t, err)
			put(t, r.For(bob), data)
			tc.then(t, r, slow)
			rest, err := io.ReadAll(f)
			if name == "removed" {
				class(t, errdefs.IsNotFound, err)
				return
			}
			if !tc.whole {
				class(t, errdefs.IsUnavailable, err)
				return
			}
			must(t, err)
			if string(head)+string(rest) != data {
				t.Errorf("read %d bytes that are not the blob", len(head)+len(rest))
			}
		})
	}
}

// TestFollowSupersededWhileWaiting lets readers wait for a slow download when another writer
// commits the blob.
func TestFollowSupersededWhileWaiting(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	d := digest.FromString("blob")
	slow := start(t, r.For(alice), "layer-"+d.String(), ocispec.Descriptor{Size: 4})
	write(t, slow, "bl")
	f, err := r.Open(t.Context(), d)
	must(t, err)
	defer f.Close()
	go func() {
		time.Sleep(20 * time.Millisecond)
		put(t, r.For(bob), "blob")
	}()
	if b, err := io.ReadAll(f); err != nil || string(b) != "blob" {
		t.Errorf("read %q, %v", b, err)
	}
}
