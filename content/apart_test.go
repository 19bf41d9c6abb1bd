package content

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestCommitAcrossDisks commits where a rename to blobs/ fails with EXDEV. Either a synced copy of
// the right bytes gets the name, or no file does and the download stays.
func TestCommitAcrossDisks(t *testing.T) {
	for name, tc := range map[string]struct {
		alg    digest.Algorithm
		fault  string
		spoil  bool // changes a byte before the copy
		failed func(error) bool
	}{
		"a copy":             {alg: digest.SHA256},
		"another algorithm":  {alg: digest.SHA512},
		"bytes that changed": {alg: digest.SHA256, spoil: true, failed: errdefs.IsDataLoss},
		"a sync that fails": {
			digest.SHA256, "sync blobs/*/*: fail EIO", false, func(err error) bool { return errors.Is(err, unix.EIO) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, t.TempDir(), nil)
			data := strings.Repeat("blob ", 100000)
			d := tc.alg.FromString(data)
			w := start(t, r.For(alice), "ref", ocispec.Descriptor{})
			write(t, w, data)
			must(t, w.Sync())
			r.fs.Add(t, "rename blobs/*/* #1: fail EXDEV")
			if tc.fault != "" {
				r.fs.Add(t, tc.fault)
			}
			if tc.spoil {
				r.fs.Before("rename", "blobs/*/*", func(string) {
					f, err := os.OpenFile(w.data(), os.O_WRONLY, 0)
					must(t, err)
					_, err = f.WriteAt([]byte("B"), 0)
					must(t, errors.Join(err, f.Close()))
				})
			}
			synced := ""
			r.fs.Before("sync", "", func(path string) { synced = path })
			err := w.Commit(t.Context(), 0, d)
			if tc.failed != nil {
				if !tc.failed(err) {
					t.Errorf("commit: %v", err)
				}
				if left, _ := filepath.Glob(filepath.Join(r.path, "blobs/*/*")); len(left) > 0 {
					t.Errorf("left %q", left)
				}
				if names := r.names("ingest"); len(names) != 1 {
					t.Errorf("downloads %q", names)
				}
				return
			}
			must(t, err)
			if filepath.Dir(synced) != filepath.Dir(r.Path(d)) {
				t.Errorf("the last file that was synced is %s", synced)
			}
			b, err := os.ReadFile(r.Path(d))
			must(t, err)
			fi, err := os.Lstat(r.Path(d))
			must(t, err)
			if string(b) != data || fi.Mode() != 0o444 {
				t.Errorf("%d bytes, mode %v", len(b), fi.Mode())
			}
			if names := r.names("ingest"); len(names) > 0 {
				t.Errorf("downloads %q", names)
			}
		})
	}
}
