package content

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/errclass/errclasstest"
	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
)

// scene is a root in which every function of calls has something to do.
type scene struct {
	*root
	ctx   context.Context
	held  digest.Digest // a blob of alice
	other digest.Digest // a blob of bob
	lost  digest.Digest // a blob whose record is missing
	w     *writer       // of alice; the bytes "new" are written and not synced
}

func newScene(t *testing.T) *scene {
	r := open(t, t.TempDir(), nil)
	s := &scene{root: r, ctx: t.Context(), lost: digest.FromString("lost")}
	s.held, s.other = put(t, r.For(alice), "held"), put(t, r.For(bob), "other")
	r.plant(s.lost, "lost")
	must(t, start(t, r.For(alice), "left", ocispec.Descriptor{}).Close())
	s.w = start(t, r.For(alice), "new", ocispec.Descriptor{})
	write(t, s.w, "new")
	return s
}

func (s *scene) alice() *HolderStore { return s.For(alice) }

func desc(d digest.Digest) ocispec.Descriptor { return ocispec.Descriptor{Digest: d} }

// calls has a call of every exported function that returns an error.
var calls = map[string]func(s *scene) error{
	"Open": func(s *scene) error {
		opened, err := Open(s.path, s.db, &Options{FS: s.fs})
		if err == nil {
			err = opened.Close()
		}
		return err
	},
	"Recover": func(s *scene) error {
		_, err := Recover(s.ctx, s.path)
		return err
	},
	"Store.ReaderAt": func(s *scene) error { return closeOpened(s.ReaderAt(s.ctx, desc(s.held))) },
	"Store.Open":     func(s *scene) error { return closeOpened(s.Open(s.ctx, s.held)) },
	"Store.Check":    func(s *scene) error { return s.Check(s.ctx, func(metadata.Fault) {}) },
	"Store.CheckBlob": func(s *scene) error {
		return s.CheckBlob(s.ctx, digest.FromString("x"), func(metadata.Fault) {})
	},
	"Store.Sweep": func(s *scene) error {
		_, err := s.Sweep(s.ctx)
		return err
	},
	"Store.HandOver": func(s *scene) error { return s.HandOver(alice, bob) },
	"Store.Close":    func(s *scene) error { return s.Close() },
	"HolderStore.Info": func(s *scene) error {
		_, err := s.alice().Info(s.ctx, s.other)
		return err
	},
	"HolderStore.ReaderAt": func(s *scene) error { return closeOpened(s.alice().ReaderAt(s.ctx, desc(s.other))) },
	"HolderStore.Update": func(s *scene) error {
		_, err := s.alice().Update(s.ctx, content.Info{Digest: s.held, Labels: map[string]string{"a": "b"}})
		return err
	},
	"HolderStore.Walk": func(s *scene) error {
		return s.alice().Walk(s.ctx, func(content.Info) error { return nil })
	},
	"HolderStore.Delete": func(s *scene) error { return s.alice().Delete(s.ctx, s.held) },
	"HolderStore.Status": func(s *scene) error {
		_, err := s.alice().Status(s.ctx, "left")
		return err
	},
	"HolderStore.ListStatuses": func(s *scene) error {
		_, err := s.alice().ListStatuses(s.ctx)
		return err
	},
	"HolderStore.WalkStatusRefs": func(s *scene) error {
		return s.alice().WalkStatusRefs(s.ctx, func(string) error { return nil })
	},
	"HolderStore.Abort": func(s *scene) error { return s.alice().Abort(s.ctx, "new") },
	"HolderStore.CheckSpace": func(s *scene) error {
		return s.alice().CheckSpace(s.ctx, []ocispec.Descriptor{{Digest: s.lost, Size: 4}}, true)
	},
	// The next three rows call Writer: for a new ingest, for a resumed one, and for a blob without a
	// record.
	"HolderStore.Writer": func(s *scene) error {
		return closeOpened(s.alice().Writer(s.ctx, content.WithRef("another")))
	},
	"HolderStore.Writer/resumed": func(s *scene) error {
		return closeOpened(s.alice().Writer(s.ctx, content.WithRef("left")))
	},
	"HolderStore.Writer/adopted": func(s *scene) error {
		return closeOpened(s.alice().Writer(s.ctx, content.WithRef("lost"), content.WithDescriptor(desc(s.lost))))
	},
	"writer.Status": func(s *scene) error {
		_, err := s.w.Status()
		return err
	},
	"writer.Write": func(s *scene) error {
		_, err := s.w.Write([]byte("more"))
		return err
	},
	"writer.Sync":     func(s *scene) error { return s.w.Sync() },
	"writer.Truncate": func(s *scene) error { return s.w.Truncate(0) },
	"writer.Close":    func(s *scene) error { return s.w.Close() },
	"writer.Commit":   func(s *scene) error { return s.w.Commit(s.ctx, 3, digest.FromString("new")) },
	"writer.Commit/other algorithm": func(s *scene) error {
		return s.w.Commit(s.ctx, 3, digest.SHA512.FromString("new"))
	},
}

func closeOpened[T interface{ Close() error }](opened T, err error) error {
	if err != nil {
		return err
	}
	return opened.Close()
}

// TestFaults repeats each call with a fault, an error or a crash, in each of its operations in turn.
// Each error must have a class, and no committed blob may be lost. Afterwards the root passes Check,
// the blob can be committed, and a sweep leaves nothing else.
func TestFaults(t *testing.T) {
	for name, call := range calls {
		for _, action := range []string{
			"fail EIO", "fail ENOSPC after", "crash", "crash during", "crash after",
		} {
			faults := 0
			fsystest.Each(action, func(fault string) (hit bool) {
				t.Run(name+"/"+fault, func(t *testing.T) {
					s := newScene(t)
					before := len(s.fs.History())
					s.fs.Add(t, fault)
					err := call(s)
					hit = s.fs.Hits() > 0
					errclasstest.Check(t, fault, err)
					s.checkAfter(t, err)
					if t.Failed() {
						t.Logf("error: %v; history: %q", err, s.fs.History()[before:])
					}
				})
				faults++
				return hit
			})
			if faults == 1 { // the call changes nothing
				break
			}
		}
	}
}

// checkAfter opens the root again after a call that returned err, as the next process does.
func (s *scene) checkAfter(t *testing.T, err error) {
	t.Helper()
	must(t, errors.Join(s.w.Close(), s.Close()))
	next, oerr := Open(s.path, s.db, nil)
	must(t, oerr)
	defer func() { must(t, next.Close()) }()
	check := func() {
		t.Helper()
		must(t, s.db.Check(func(f metadata.Fault) { t.Errorf("records: %v", f) }))
		must(t, next.Check(s.ctx, func(f metadata.Fault) { t.Errorf("blobs: %v", f) }))
	}
	check()
	if _, ok := next.Size(s.other); !ok {
		t.Error("a blob is lost")
	}
	if _, ok := next.Size(s.held); !ok && err != nil {
		t.Error("a blob is lost with an error")
	}
	for _, data := range []string{"new", "lost"} {
		w := start(t, next.For(alice), "again", ocispec.Descriptor{})
		write(t, w, data)
		if err := w.Commit(s.ctx, 0, digest.FromString(data)); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Errorf("commit of %q after the fault: %v", data, err)
		}
	}
	for _, h := range []metadata.Holder{alice, bob} {
		for _, ref := range []string{"left", "another", "new", "lost"} {
			_ = next.For(h).Abort(s.ctx, ref)
		}
	}
	_, serr := next.Sweep(s.ctx)
	must(t, serr)
	check()
	if names := s.names("ingest"); len(names) > 0 {
		t.Errorf("ingests are left: %q", names)
	}
}

// TestErrorsHaveAClass calls every function on a root that was deleted, on one whose directories
// were replaced by files, with a closed database, and with a context that has ended.
func TestErrorsHaveAClass(t *testing.T) {
	functions := map[string]bool{}
	for name := range calls {
		name, _, _ = strings.Cut(name, "/")
		functions[name] = true
	}
	errclasstest.Complete(t, ".", functions, map[string]string{"ctxReader.Read": "internal"})
	for damage, do := range map[string]func(t *testing.T, s *scene){
		"the root is gone": func(t *testing.T, s *scene) { must(t, os.RemoveAll(s.path)) },
		"files instead of directories": func(t *testing.T, s *scene) {
			for _, dir := range []string{"blobs", "ingest"} {
				dir = filepath.Join(s.path, dir)
				must(t, errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)))
			}
		},
		"the database is closed": func(t *testing.T, s *scene) { must(t, s.db.Close()) },
		"the context has ended": func(t *testing.T, s *scene) {
			ctx, cancel := context.WithTimeout(s.ctx, time.Nanosecond)
			t.Cleanup(cancel)
			<-ctx.Done()
			s.ctx = ctx
		},
	} {
		for name, call := range calls {
			t.Run(damage+"/"+name, func(t *testing.T) {
				s := newScene(t)
				s.damaged = true
				do(t, s)
				errclasstest.Check(t, name, call(s))
			})
		}
	}
}

// TestDamagedIngest shows that a download does not resume, for ever, bytes that a power cut has damaged: a Commit that
// finds them wrong deletes them. Bytes of the same process stay.
func TestDamagedIngest(t *testing.T) {
	const data = "all the bytes of a blob"
	d := digest.FromString(data)
	r := open(t, t.TempDir(), nil)
	w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
	write(t, w, data[:10])
	must(t, w.Close())
	must(t, os.WriteFile(w.data(), make([]byte, 10), 0o600))
	hs := r.reopen(nil).For(alice)
	for attempt, offset := range []int64{10, 0} {
		w := start(t, hs, "ref", ocispec.Descriptor{})
		st, err := w.Status()
		must(t, err)
		if st.Offset != offset {
			t.Errorf("attempt %d resumes at %d, not at %d", attempt, st.Offset, offset)
		}
		write(t, w, data[st.Offset:])
		err = w.Commit(t.Context(), int64(len(data)), d)
		if attempt == 0 {
			class(t, errdefs.IsFailedPrecondition, err)
			continue
		}
		must(t, err)
	}
}
