package snapshot_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/fsys/fsystest"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/snapshot"
)

// openSeen opens a root whose changes, also those of the database, go through the returned FS.
func openSeen(t *testing.T, opts snapshot.Options) (*world, *fsystest.FS) {
	t.Helper()
	requireRoot(t)
	root := t.TempDir()
	fs := fsystest.New(t, root)
	opts.FS, opts.Unpack, opts.SyncDelay = fs, rights(), -1
	db, err := metadata.Open(filepath.Join(root, "metadata.db"), &metadata.Options{NoSync: true, FS: fs})
	must(t, err)
	s, err := snapshot.Open(root, db, memory{}, &opts)
	must(t, err)
	w := &world{s, root, db, memory{}}
	t.Cleanup(func() {
		fs.Clear()
		report := func(f metadata.Fault) { t.Error(f) }
		must(t, db.Check(report))
		must(t, w.Check(ctx, report))
		must(t, w.close())
	})
	return w, fs
}

// steps returns the syncs and the transactions of the history since the last call, without those of layers and without
// repetitions.
func steps(fs *fsystest.FS, seen *int) []string {
	all := fs.History()
	since := all[*seen:]
	*seen = len(all)
	var steps []string
	for _, line := range since {
		op, what, _ := strings.Cut(line, " ")
		if op == "rename" {
			_, what, _ = strings.Cut(what, " ")
		}
		if slices.Contains([]string{"sync", "syncdir", "syncfs", "commit", "rename"}, op) &&
			!strings.HasPrefix(what, "layers") {
			steps = append(steps, op+" "+what)
		}
	}
	return steps
}

// TestAcknowledgedIsSynced: what a call made is on the disk before the database has it, and the durable record before
// the call is answered. The steps are those of a file system in which each directory has to be synced.
func TestAcknowledgedIsSynced(t *testing.T) {
	w, fs := openSeen(t, snapshot.Options{})
	sn := w.For(holder)
	must(t, second(sn.Prepare(ctx, "first", ""))) // takes numbers from the database
	seen := len(fs.History())
	made := func(dir string, more ...string) []string {
		at := "snapshots/" + dir
		want := []string{"rename " + at, "sync " + at + "/record"}
		for _, d := range more {
			want = append(want, "syncdir "+at+"/"+d)
		}
		return append(want, "syncdir "+at, "syncdir snapshots", "commit metadata.db")
	}
	upper := ""
	for _, row := range []struct {
		what string
		call func() error
		want []string
	}{
		{"Prepare", func() error {
			ms, err := sn.Prepare(ctx, "container", "")
			upper = ms[0].Source
			return err
		}, made("2", "fs", "work")},
		{"Update", func() error { return second(sn.Update(ctx, snapshots.Info{Name: "container"})) },
			[]string{"commit metadata.db", "sync snapshots/2/record"}},
		{"Commit", func() error {
			must(t, os.WriteFile(filepath.Join(upper, "file"), []byte("important"), 0o600))
			return sn.Commit(ctx, "committed", "container")
		}, []string{"syncfs snapshots/2/fs", "commit metadata.db", "sync snapshots/2/record"}},
		{"View", func() error { return second(sn.View(ctx, "view", "committed")) }, made("3")},
	} {
		err := row.call()
		got := steps(fs, &seen)
		if err != nil || len(got) < len(row.want) || !slices.Equal(got[:len(row.want)], row.want) {
			t.Errorf("%s: error %v, steps\n\t%s, want\n\t%s", row.what, err, strings.Join(got, "\n\t"),
				strings.Join(row.want, "\n\t"))
		}
	}
}

// TestUnsyncedCommits: a builder's commits do not wait for files, and still have a durable record.
func TestUnsyncedCommits(t *testing.T) {
	w, fs := openSeen(t, snapshot.Options{UnsyncedCommits: true})
	sn := w.For(holder)
	ms, err := sn.Prepare(ctx, "container", "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(ms[0].Source, "file"), nil, 0o600))
	seen := len(fs.History())
	must(t, sn.Commit(ctx, "committed", "container"))
	want := []string{"commit metadata.db", "sync snapshots/1/record"}
	if got := steps(fs, &seen); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestCommitSyncFails: a commit whose files can't be written to the disk is refused, and the snapshot stays as it was.
func TestCommitSyncFails(t *testing.T) {
	for fault, class := range map[string]func(error) bool{
		"syncfs snapshots/*/fs: fail EIO":    errdefs.IsInternal,
		"syncfs snapshots/*/fs: fail ENOSPC": errdefs.IsResourceExhausted,
	} {
		w, fs := openSeen(t, snapshot.Options{})
		sn := w.For(holder)
		ms, err := sn.Prepare(ctx, "container", "")
		must(t, err)
		must(t, os.WriteFile(filepath.Join(ms[0].Source, "file"), nil, 0o600))
		fs.Add(t, fault)
		if err := sn.Commit(ctx, "committed", "container"); !class(err) {
			t.Errorf("%s: %v", fault, err)
		}
		if i, err := sn.Stat(ctx, "container"); err != nil || i.Kind != snapshots.KindActive {
			t.Errorf("%s: %+v, %v", fault, i, err)
		}
		must(t, sn.Commit(ctx, "committed", "container"))
	}
}
