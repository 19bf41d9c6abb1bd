package containerdconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/peer"
	"github.com/tank-snapshotter/tank/internal/processor"
)

// processorTOML returns the section of a stream processor.
func processorTOML(id, accepts, path string) string {
	return fmt.Sprintf("[stream_processors.%q]\n  accepts = [%q]\n  returns = "+
		"\"application/vnd.oci.image.layer.v1.tar\"\n  path = %q\n", id, accepts, path)
}

const encryptedTar = "application/vnd.oci.image.layer.v1.tar+encrypted"

// TestProcessorsOfContainerd: Tank accepts only a config that no other user can write. It sorts the programs by how
// likely it is that containerd itself would run them.
func TestProcessorsOfContainerd(t *testing.T) {
	const builtIn = "io.containerd.ocicrypt.decoder.v1.tar"
	for _, tc := range []struct {
		name   string
		config string // "" for no file
		other  string // imported
		spoil  func(dir string) error
		want   []string // IDs; nil for errdefs.ErrUnavailable
	}{
		{"no config", "", "", nil, []string{builtIn, builtIn + ".gzip"}},
		{"none of its own", "version = 3\n", "", nil, []string{builtIn, builtIn + ".gzip"}},
		{"of its own", processorTOML("x", encryptedTar, "/bin/sh"), "", nil, []string{"x", builtIn, builtIn + ".gzip"}},
		{"of its own, without a program", processorTOML("x", encryptedTar, "/none"), "", nil,
			[]string{"x", builtIn, builtIn + ".gzip"}},
		{"two, one without a program", processorTOML("a", encryptedTar, "/none") +
			processorTOML("b", encryptedTar, "/bin/sh"), "", nil,
			[]string{"b", "a", builtIn, builtIn + ".gzip"}},
		{"a built-in one that is replaced", processorTOML(builtIn, encryptedTar, "/bin/sh"), "", nil,
			[]string{builtIn, builtIn + ".gzip"}},
		{"imported", "imports = [\"other.toml\"]\n", processorTOML("x", encryptedTar, "/bin/sh"), nil,
			[]string{"x", builtIn, builtIn + ".gzip"}},
		{"syntax", "[", "", nil, nil},
		{"others may write it", processorTOML("x", encryptedTar, "/bin/sh"), "",
			func(dir string) error { return os.Chmod(filepath.Join(dir, "config.toml"), 0o666) }, nil},
		{"others may write an import", "imports = [\"other.toml\"]\n", processorTOML("x", encryptedTar, "/bin/sh"),
			func(dir string) error { return os.Chmod(filepath.Join(dir, "other.toml"), 0o620) }, nil},
		{"another user owns it", processorTOML("x", encryptedTar, "/bin/sh"), "",
			func(dir string) error { return os.Chown(filepath.Join(dir, "config.toml"), 1234, 0) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"config.toml": tc.config, "other.toml": tc.other} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tc.spoil != nil {
				if err := tc.spoil(dir); os.IsPermission(err) {
					t.Skipf("only root can do this: %v", err)
				} else if err != nil {
					t.Fatal(err)
				}
			}
			got, err := processorsIn(t.Context(), filepath.Join(dir, "config.toml"))
			if tc.want == nil {
				if !errdefs.IsUnavailable(err) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			var ids []string
			for _, p := range got {
				ids = append(ids, p.ID)
			}
			if err != nil || !slices.Equal(ids, tc.want) {
				t.Errorf("%q, %v", ids, err)
			}
		})
	}
	other := peer.Process{PID: os.Getpid(), UID: 4321}
	if _, err := ProcessorsOf(t.Context(), other); !errdefs.IsUnavailable(err) {
		t.Errorf("of a process of another user: %v", err)
	}
}

// TestCheckProcessors: the findings about which stream processors of containerd Tank runs, and which it does not.
func TestCheckProcessors(t *testing.T) {
	own := func(accepts string) map[string]processor.Processor {
		return map[string]processor.Processor{"own": {
			Accepts: []string{accepts}, Returns: "application/vnd.oci.image.layer.v1.tar", Path: "/bin/sh",
		}}
	}
	const other = "application/vnd.test"
	for _, tc := range []struct {
		name, config string
		processors   map[string]processor.Processor
		mode         os.FileMode
		want         string // "" for nothing
		wrong        bool
	}{
		{"none", "", nil, 0o600, "", false},
		{"one", processorTOML("x", encryptedTar, "/bin/sh"), nil, 0o600,
			`Tank runs the stream processor "x" (/bin/sh) for layers of ` + encryptedTar, false},
		{"one without a program", processorTOML("x", encryptedTar, "/none"), nil, 0o600,
			"names a program that can't be run", true},
		{"one for layers that Tank reads",
			processorTOML("pigz", "application/vnd.oci.image.layer.v1.tar+gzip", "/none"), nil, 0o600,
			`Tank does not run the stream processor "pigz"`, false},
		{"a file that others may write", processorTOML("x", encryptedTar, "/bin/sh"), nil, 0o666,
			"Tank does not run the stream processors", true},
		{"of both", processorTOML("x", encryptedTar, "/bin/sh"), own(encryptedTar), 0o600, "", false},
		{"of containerd alone", processorTOML("x", other, "/bin/sh"), own(encryptedTar), 0o600,
			"but Tank's own config has no stream processor that does", true},
		{"of Tank alone", "", own(other), 0o600, "but this containerd does not", false},
		{"turned off", processorTOML("x", other, "/bin/sh"), map[string]processor.Processor{}, 0o600,
			"leave [stream_processors] out of Tank's config", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			in := Install{Root: "/srv/tank", Address: "/none", Content: true}
			text, err := in.DropIn() // as printed before Tank's own config had the section
			if err != nil {
				t.Fatal(err)
			}
			in.Processors = tc.processors
			for name, text := range map[string]string{
				"config.toml": fmt.Sprintf("root = %q\nimports = [\"tank.toml\"]\n", dir) + tc.config,
				"tank.toml":   text,
			} {
				file := filepath.Join(dir, name)
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, tc.mode); err != nil {
					t.Fatal(err)
				}
			}
			found, err := in.Check(t.Context(), filepath.Join(dir, "config.toml"))
			if err != nil {
				t.Fatal(err)
			}
			found = slices.DeleteFunc(found, func(f Finding) bool {
				return strings.Contains(f.String(), "Nobody answers")
			})
			switch {
			case tc.want == "" && len(found) > 0:
				t.Errorf("findings %+v", found)
			case tc.want != "" && (len(found) != 1 || found[0].Note == tc.wrong ||
				!strings.Contains(found[0].String(), tc.want)):
				t.Errorf("findings %+v, want %q", found, tc.want)
			}
		})
	}
}
