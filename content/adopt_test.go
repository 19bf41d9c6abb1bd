package content

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestFileInTheWay puts a sparse file at the path of a blob that has no record. The file is not
// hashed, and the blob is downloaded.
func TestFileInTheWay(t *testing.T) {
	t.Parallel()
	const data = "what the registry serves"
	var st unix.Statfs_t
	must(t, unix.Statfs(t.TempDir(), &st))
	tooLarge := int64(st.Blocks)*st.Bsize + 1
	for name, row := range map[string]struct{ size, lies int64 }{
		"of another size than announced": {int64(len(data)), 1 << 40},
		"larger than the disk":           {0, tooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			r := open(t, t.TempDir(), nil)
			d := digest.FromString(data)
			must(t, os.MkdirAll(filepath.Dir(r.Path(d)), 0o755))
			must(t, os.WriteFile(r.Path(d), nil, 0o644))
			if err := os.Truncate(r.Path(d), row.lies); err != nil {
				t.Skipf("the file system has no files of %d bytes: %v", row.lies, err)
			}
			if row.lies >= tooLarge {
				if found, err := Recover(ctx, r.path); err != nil || len(found.Blobs) != 0 ||
					len(found.Damaged) != 1 {
					t.Errorf("recover: %+v, %v", found, err)
				}
			}
			w, err := r.For(alice).Writer(ctx, content.WithRef("r"),
				content.WithDescriptor(ocispec.Descriptor{Digest: d, Size: row.size}))
			must(t, err)
			defer w.Close()
			write(t, w, data)
			must(t, w.Commit(ctx, int64(len(data)), d))
		})
	}
}
