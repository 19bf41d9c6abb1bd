package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestDropped extracts layers with extended attributes to a file system that does not support them. The attributes are
// left out, and the result names each of them once. Malformed attributes are refused, as on every file system.
func TestDropped(t *testing.T) {
	if os.Geteuid() != 0 {
		skipOrFail(t, "needs root, to mount")
	}
	base := t.TempDir()
	must(t, unix.Mount("ramfs", base, "ramfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(base, 0)) })
	var many []u.Item
	for i := range 300 {
		many = append(many, u.F(fmt.Sprint("f", i), "1").Xattr("security.capability", capability).
			Xattr("user.x", fmt.Sprint(i)))
	}
	for i, row := range []struct {
		testName string
		items    []u.Item
		want     []string // names of the dropped attributes
		refused  bool
	}{
		{"none", items(u.F("a", "1")), nil, false},
		{"of every kind of file", items(u.D("d").Xattr("user.d", "1"),
			u.F("d/a", "1").Xattr("user.a", "1").Xattr("trusted.a", "2"),
			u.S("s", "t").Xattr("trusted.s", "1"), u.P("p").Xattr("trusted.p", "1"),
			u.F("ping", "2").Xattr("security.capability", capability)),
			[]string{"security.capability", "trusted.a", "trusted.p", "trusted.s", "user.a", "user.d"}, false},
		{"of the root directory", items(u.D("./").Xattr("user.root", "1")), []string{"user.root"}, false},
		{"of a hard link's header", items(u.F("a", "1"), u.H("b", "a").Xattr("user.b", "1")), []string{"user.b"},
			false},
		{"ACLs", items(u.D("d").Mode(0o770).Xattr("system.posix_acl_default", acl),
			u.F("f", "").Mode(0o660).Xattr("system.posix_acl_access", acl)),
			[]string{"system.posix_acl_access", "system.posix_acl_default"}, false},
		{"of many small files", many, []string{"security.capability", "user.x"}, false},
		{"a malformed capability", items(u.F("a", "").Xattr("security.capability", "short")), nil, true},
		{"a malformed ACL", items(u.F("a", "").Xattr("system.posix_acl_access", "x")), nil, true},
		{"an ACL of version 1", items(u.F("a", "").Xattr("system.posix_acl_access", "\x01\x00\x00\x00")), nil, true},
	} {
		t.Run(row.testName, func(t *testing.T) {
			path := fmt.Sprintf("%s/%d", base, i)
			must(t, os.Mkdir(path, 0o700))
			raw := bytes.NewReader(u.Tar(t, row.items...))
			res, err := unpack.Extract(context.Background(), openDir(t, path), raw, nil)
			if row.refused {
				if !errors.Is(err, stream.ErrInvalidLayer) {
					t.Errorf("error %v", err)
				}
				return
			}
			must(t, err)
			if !slices.Equal(res.DroppedXattrs, row.want) {
				t.Errorf("dropped %q, want %q", res.DroppedXattrs, row.want)
			}
			listed, err := tree.ReadDir(openDir(t, path))
			must(t, err)
			if d := difference(res.Entries(), listed); d != "" {
				t.Error(d)
			}
			bare := t.TempDir() // on a file system that supports attributes
			for i := range row.items {
				row.items[i].Header.PAXRecords = nil
			}
			without := extractTo(t, bare, u.Tar(t, row.items...))
			if got, want := u.List(t, path), u.List(t, bare); !reflect.DeepEqual(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			if len(without.DroppedXattrs) > 0 {
				t.Errorf("dropped %q", without.DroppedXattrs)
			}
		})
	}
}
