package containerdconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCheckBlobs: the findings about images that become unreachable, about skip_known_blobs, and about a
// disabled CRI. All of these are notes except one, which is in TestCheck.
func TestCheckBlobs(t *testing.T) {
	own := t.TempDir()
	empty := t.TempDir()
	for dir, file := range map[string]string{own: "sha256/abc", empty: "sha256"} {
		path := filepath.Join(dir, "io.containerd.content.v1.content", "blobs", file)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	full := Install{Root: "/srv/tank", Address: "/none", Content: true}
	second := Install{Root: "/srv/tank", Address: "/none", ContainerdAddress: DefaultAddress}
	skipping := full
	skipping.SkipKnownBlobs = true
	const discard = "[plugins.'io.containerd.cri.v1.images']\n  discard_unpacked_layers = true\n"
	const isolated = "[plugins.'io.containerd.metadata.v1.bolt']\n  content_sharing_policy = \"isolated\"\n"
	disabled := func(plugin string) string { return fmt.Sprintf("disabled_plugins = [%q]\n", plugin) }
	for _, tc := range []struct {
		name, root, config string
		in                 Install
		want               string // "" for nothing
	}{
		{"images in containerd's own store", own, "", full,
			own + "/io.containerd.content.v1.content/blobs, becomes unreachable"},
		{"images in containerd's own store, which it keeps", own, "", second, ""},
		{"an empty store", empty, "", full, ""},
		{"no store", filepath.Join(empty, "none"), "", full, ""},
		{"discarded blobs", empty, discard, full, "With skip_known_blobs = true"},
		{"discarded blobs, isolated", empty, discard + isolated, full, ""},
		{"discarded blobs that are skipped", empty, discard, skipping, ""},
		{"kept blobs that are skipped", empty, "", skipping, "CRI keeps the blobs of unpacked layers"},
		{"disabled CRI", empty, disabled("io.containerd.grpc.v1.cri"), full, "CRI is disabled"},
		{"disabled CRI, version 1", empty, disabled("cri"), full, "CRI is disabled"},
		{"disabled CRI images", empty, disabled("io.containerd.cri.v1.images"), full, "CRI is disabled"},
		{"disabled CRI runtime", empty, disabled("io.containerd.cri.v1.runtime"), full, "CRI is disabled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			version := "version = 3\n"
			if tc.config == disabled("cri") {
				version = ""
			}
			dir := t.TempDir()
			text, err := tc.in.DropIn()
			if err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{
				"config.toml": version + fmt.Sprintf("root = %q\nimports = [\"tank.toml\"]\n", tc.root) + tc.config,
				"tank.toml":   text,
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			found, err := tc.in.Check(t.Context(), filepath.Join(dir, "config.toml"))
			if err != nil {
				t.Fatal(err)
			}
			found = slices.DeleteFunc(found, func(f Finding) bool {
				return strings.Contains(f.String(), "Nobody answers") ||
					strings.Contains(f.String(), "discard_unpacked_layers = true: CRI then")
			})
			switch {
			case tc.want == "" && len(found) > 0:
				t.Errorf("findings %+v", found)
			case tc.want != "" && (len(found) != 1 || !found[0].Note || !strings.Contains(found[0].String(), tc.want)):
				t.Errorf("findings %+v, want %q", found, tc.want)
			}
		})
	}
}
