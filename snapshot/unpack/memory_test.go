package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// TestEntryMemory shows that an entry of any kind takes no more memory than the limits of a layer
// assume. The memory for Limits.Entries entries and Limits.Strings must fit into the budget of a
// process (docs/adr/0023-memory.md).
func TestEntryMemory(t *testing.T) {
	const entries, most = 8_000, 240
	for _, row := range []struct {
		testName string
		header   func(i int) tar.Header
	}{
		{"symlinks", func(i int) tar.Header { return tar.Header{Typeflag: tar.TypeSymlink, Linkname: "to"} }},
		{"hard links to lower files",
			func(i int) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Linkname: "to"} }},
		{"with the same attribute", func(i int) tar.Header {
			return tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.trusted.a": "b"}}
		}},
		{"files", func(i int) tar.Header { return tar.Header{Typeflag: tar.TypeReg} }},
	} {
		t.Run(row.testName, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for i := range entries {
				h := row.header(i)
				h.Name = fmt.Sprintf("usr/lib/some/where/%d/%08d", i/500, i)
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			dir := openDir(t, memoryDir(t))
			before := heap()
			res, err := unpack.Extract(context.Background(), dir, &b, nil)
			if err != nil {
				t.Fatal(err)
			}
			each := (heap() - before) / int64(res.Count)
			t.Logf("%d bytes for each of %d entries", each, res.Count)
			if each > most+20 { // 20 bytes for the name and the target
				t.Errorf("%d bytes for each entry, more than %d", each, most+20)
			}
			runtime.KeepAlive(res)
			runtime.KeepAlive(&b)
		})
	}
}

// heap returns the bytes of the heap that are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
