package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/internal/containerdconfig"
	"github.com/tank-snapshotter/tank/internal/peer"
)

// TestOwnProcessors: a section of Tank's config replaces containerd's and is part of the drop-in. An empty
// section turns stream processors off.
func TestOwnProcessors(t *testing.T) {
	const encryptedTar = "application/vnd.oci.image.layer.v1.tar+encrypted"
	section := fmt.Sprintf("[stream_processors.%q]\n  accepts = [%q]\n  returns = %q\n  path = %q\n",
		"x \"y\"", encryptedTar, "application/vnd.oci.image.layer.v1.tar", "/a\\b")
	file := filepath.Join(t.TempDir(), "config.toml")
	for text, want := range map[string]string{
		"[stream_processors]\n": "",
		section:                 "x \"y\"",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := readSettings(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.processors()(t.Context(), peer.Process{UID: 4321})
		if err != nil || len(got) != min(1, len(want)) || len(got) > 0 && got[0].ID != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		printed, err := containerdconfig.Install{Root: "/r", Address: "/a", Processors: s.StreamProcessors}.DropIn()
		if err != nil {
			t.Fatal(err)
		}
		var c containerdconfig.Config
		if err := toml.Unmarshal([]byte(printed), &c); err != nil {
			t.Fatal(err)
		}
		if p, ok := c.StreamProcessors[want]; ok != (want != "") ||
			ok && (p.Path != "/a\\b" || p.Accepts[0] != encryptedTar) {
			t.Errorf("printed %+v", c.StreamProcessors)
		}
	}
}
