package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
)

func Example() {
	var blob bytes.Buffer
	w := tar.NewWriter(&blob)
	_ = w.WriteHeader(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Name: "etc/hostname", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5})
	_, _ = w.Write([]byte("tank\n"))
	_ = w.WriteHeader(&tar.Header{Name: "etc/.wh.motd", Typeflag: tar.TypeReg})
	_ = w.WriteHeader(&tar.Header{Name: "usr/bin/sh", Typeflag: tar.TypeSymlink, Linkname: "dash"})
	_ = w.Close()

	path, err := os.MkdirTemp("", "layer-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(path)
	dir, err := os.Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dir.Close()

	stream, err := decompress.NewReader("application/vnd.oci.image.layer.v1.tar", &blob)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stream.Close()
	res, err := unpack.Extract(context.Background(), dir, stream, &unpack.Options{Unprivileged: os.Geteuid() != 0})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range res.Entries() {
		fmt.Println(e.Path, e.Type, "implied:", e.Implied)
	}
	fmt.Println("needs its parent:", res.NeedsFixup)
	// Output:
	// . dir implied: true
	// etc dir implied: false
	// etc/hostname file implied: false
	// etc/motd whiteout implied: false
	// usr dir implied: true
	// usr/bin dir implied: true
	// usr/bin/sh symlink implied: false
	// needs its parent: true
}
