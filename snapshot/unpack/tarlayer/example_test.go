package tarlayer_test

import (
	"bytes"
	"context"
	"fmt"
	"log"

	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// printer is a Writer that creates no files and prints each call.
type printer struct{}

func (printer) Mkdir(n *tarlayer.Node) error {
	fmt.Println("mkdir", n.Path())
	return nil
}

func (printer) File(_ context.Context, n *tarlayer.Node, content *tarlayer.Content) error {
	buf := make([]byte, n.Inode.Size)
	if err := content.ReadAll(buf); err != nil {
		return err
	}
	n.Inode.Hash = tarlayer.Hash(buf)
	fmt.Printf("file %s: %q\n", n.Path(), buf)
	return nil
}

func (printer) Special(n *tarlayer.Node) error {
	fmt.Println(n.Inode.Type, n.Path(), n.Inode.Target)
	return nil
}

func (printer) Link(old, n *tarlayer.Node) error {
	fmt.Println("link", n.Path(), "to", old.Path())
	return nil
}

func (printer) Remove(_ context.Context, n *tarlayer.Node) error {
	fmt.Println("remove", n.Path())
	return nil
}

func (printer) FinishDir(_ context.Context, n *tarlayer.Node) error {
	for name := range n.Whiteouts() {
		fmt.Println("whiteout", name, "in", n.Path())
	}
	return nil
}

func (printer) SetAttrs(*tarlayer.Node) error                 { return nil }
func (printer) SetAside(*tarlayer.Node, string) (bool, error) { return false, nil }
func (printer) DropAside(string) error                        { return nil }
func (printer) LacksXattr(string) bool                        { return false }
func (printer) Await(*tarlayer.Inode) error                   { return nil }

// Read needs no file system: it reports the meaning of a layer to any Writer.
func ExampleRead() {
	layer, err := unpacktest.Archive(
		unpacktest.D("etc"),
		unpacktest.F("etc/motd", "old"),
		unpacktest.W("etc/.wh.passwd"),
		unpacktest.F("etc/motd", "new"),
		unpacktest.S("lib", "usr/lib"),
		unpacktest.F("lib/libc.so", "code"),
	)
	if err != nil {
		log.Fatal(err)
	}
	result, err := tarlayer.Read(context.Background(), bytes.NewReader(layer), printer{}, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Count, "entries")
	// Output:
	// mkdir etc
	// file etc/motd: "old"
	// remove etc/motd
	// file etc/motd: "new"
	// symlink lib usr/lib
	// mkdir usr
	// mkdir usr/lib
	// file usr/lib/libc.so: "code"
	// whiteout passwd in etc
	// 8 entries
}
