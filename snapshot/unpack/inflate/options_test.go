package inflate_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tank-snapshotter/tank/snapshot/unpack/inflate"
)

// TestOptions shows how the options treat bytes behind a member, and reserved flags.
func TestOptions(t *testing.T) {
	file := stdGzip(t, 6, []byte("content"))
	reserved := bytes.Clone(file)
	reserved[3] = 0x20
	join := func(more ...string) []byte { return append(bytes.Clone(file), strings.Join(more, "")...) }
	ignore, refuse := &inflate.Options{IgnoreTrailing: true}, &inflate.Options{RefuseReserved: true}
	for _, tc := range []struct {
		name string
		file []byte
		opts *inflate.Options
		want string
		err  error
	}{
		{"garbage", join("garbage"), ignore, "content", nil},
		{"zeros", join(strings.Repeat("\x00", 200_000)), ignore, "content", nil},
		{"half of the magic", join("\x1f"), ignore, "content", nil},
		{"a member", join(string(file)), ignore, "contentcontent", nil},
		{"a member in garbage", join("x", string(file)), ignore, "content", nil},
		{"nothing but the magic", join("\x1f\x8b"), ignore, "content", io.ErrUnexpectedEOF},
		{"the magic and another method", join("\x1f\x8b\x07", string(file[3:])), ignore, "content", stdgzip.ErrHeader},
		{"a cut member", join(string(file[:15])), ignore, "content", io.ErrUnexpectedEOF},
		{"garbage at the beginning", []byte("this is no gzip file"), ignore, "", stdgzip.ErrHeader},
		{"garbage, not to be ignored", join("this is no gzip file"), nil, "content", stdgzip.ErrHeader},
		{"reserved flags", reserved, refuse, "", stdgzip.ErrHeader},
		{"reserved flags, ignored", reserved, nil, "content", nil},
		{"other flags", file, refuse, "content", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r },
				iotest.OneByteReader} {
				src := bytes.NewReader(tc.file)
				got, err := io.ReadAll(inflate.New(wrap(src), tc.opts))
				if !strings.HasPrefix(string(got), tc.want) || err != tc.err {
					t.Errorf("%q and %v, want %q and %v", got, err, tc.want, tc.err)
				}
				if err == nil && src.Len() != 0 {
					t.Errorf("%d bytes of the source were not read", src.Len())
				}
			}
		})
	}
	fault := errors.New("connection lost")
	got, err := io.ReadAll(
		inflate.New(io.MultiReader(bytes.NewReader(join("garbage")), iotest.ErrReader(fault)), ignore),
	)
	if string(got) != "content" || err != fault {
		t.Errorf("a fault in garbage: %q, %v", got, err)
	}
}
