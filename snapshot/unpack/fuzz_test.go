package unpack_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// FuzzExtract checks three promises for any input: nothing outside the root changes, every error blames the layer or is
// a limit of the file system, and the returned list of entries matches the directory.
func FuzzExtract(f *testing.F) {
	for _, table := range tables {
		for _, r := range table {
			raw := r.raw
			if raw == nil {
				raw = u.Tar(f, r.items...)
			}
			if len(raw) < 16<<10 {
				f.Add(raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		raw := bytes.Clone(in)
		base := memoryDir(t)
		root, canary := filepath.Join(base, "root"), filepath.Join(base, "CANARY")
		must(t, os.Mkdir(root, 0o700))
		must(t, os.Mkdir(canary, 0o700))
		must(t, os.WriteFile(filepath.Join(canary, "secret"), []byte("secret"), 0o400))
		before := u.List(t, canary)
		opts := userOptions()
		repair(raw)
		opts.Limits = tarlayer.Limits{Bytes: 4 << 20, Entries: 1000}
		o := extractAndCompare(openDir(t, root), raw, opts)
		if o.Disagree != "" {
			t.Errorf("Extract and tree.ReadDir disagree: %s", o.Disagree)
		}
		if o.Err != "" && !o.Invalid && !fromFilesystem(o.Err) {
			t.Errorf("error of another class: %s", o.Err)
		}
		if after := u.List(t, canary); !reflect.DeepEqual(after, before) {
			t.Errorf("the canary changed:\n%s", strings.Join(after, "\n"))
		}
		if names, err := os.ReadDir(base); err != nil || len(names) != 2 {
			t.Errorf("unexpected files beside the root: %v, %v", names, err)
		}
	})
}

// repair corrects the checksums of headers, so that package tar accepts headers that the fuzzer changed.
func repair(raw []byte) {
	for ; len(raw) >= 512; raw = raw[512:] {
		if string(raw[257:262]) != "ustar" {
			continue
		}
		copy(raw[148:156], "        ")
		sum := 0
		for _, b := range raw[:512] {
			sum += int(b)
		}
		copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
}

// fromFilesystem reports whether the error comes from a limit of the file system.
func fromFilesystem(err string) bool {
	return strings.HasSuffix(err, "no space left on device") || strings.HasSuffix(err, "argument list too long")
}
