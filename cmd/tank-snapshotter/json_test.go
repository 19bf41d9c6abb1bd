package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tank-snapshotter/tank"
)

// variable matches the parts of an output that differ between runs or machines.
var variable = []struct {
	part *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`[0-9-]{10}T[0-9:.]+Z`), `TIME`},
	{regexp.MustCompile(`"(bytes|alone)":[1-9][0-9]*`), `"$1":BYTES`},
	{regexp.MustCompile(`"size": ?[1-9][0-9]*`), `"size":BYTES`},
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]+`), `REGISTRY`},
}

// normal is the script command `normal`: it writes the last stdout to the file normal, with names in place of
// the parts that differ between runs or machines. Each digest gets a number, in the order in which digests
// appear.
func normal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: normal")
	}
	text := ts.ReadFile("stdout")
	for _, root := range []string{"/r/", "/daemon/"} {
		text = strings.ReplaceAll(text, ts.Getenv("WORK")+root, "ROOT/")
	}
	for _, v := range variable {
		text = v.part.ReplaceAllString(text, v.name)
	}
	text = strings.ReplaceAll(text, platforms.DefaultString(), "PLATFORM")
	text = regexp.MustCompile(`("architecture": ?)"`+runtime.GOARCH+`"`).ReplaceAllString(text, `$1"ARCH"`)
	numbers := map[string]string{ts.Getenv("LAYER"): "LAYER"}
	text = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllStringFunc(text, func(d string) string {
		if numbers[d] == "" {
			numbers[d] = fmt.Sprint("DIGEST", len(numbers))
		}
		return numbers[d]
	})
	ts.Check(os.WriteFile(ts.MkAbs("normal"), []byte(text), 0o600))
}

// TestJSONNames: the JSON of the types that the program prints and sends has these names, and omits these
// empty fields.
func TestJSONNames(t *testing.T) {
	moment := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	for _, tc := range []struct {
		value any
		want  string
	}{
		{tank.Image{}, `{"ref":"","digest":"","manifest":"","config":null,"cached":false}`},
		{tank.Image{Ref: "r", Digest: "d", Manifest: "m", Rootfs: "f", Config: json.RawMessage(`{ "a": 1 }`),
			Cached: true},
			`{"ref":"r","digest":"d","manifest":"m","rootfs":"f","config":{"a":1},"cached":true}`},
		{tank.ImageInfo{}, `{"ref":"","digest":"","size":0,"created":"0001-01-01T00:00:00Z"}`},
		{tank.ImageInfo{Ref: "r", Digest: "d", Manifest: "m", Platform: "p", Rootfs: "f", Size: 1,
			Untagged: true, Created: moment},
			`{"ref":"r","digest":"d","manifest":"m","platform":"p","rootfs":"f","size":1,"untagged":true,` +
				`"created":"2026-01-02T03:04:05.000006Z"}`},
		{tank.Reclaimed{}, `{"images":0,"blobs":0,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0}`},
		{tank.Reclaimed{Images: 1, Blobs: 2, Ingests: 3, Layers: 4, Rootfs: 5, Snapshots: 6, Bytes: 7, Kept: "k",
			Unfinished: []tank.Unfinished{{Holder: "h", Bytes: 8}, {Running: true}}},
			`{"images":1,"blobs":2,"ingests":3,"layers":4,"rootfs":5,"snapshots":6,"bytes":7,"kept":"k",` +
				`"unfinished":[{"holder":"h","bytes":8},{"holder":"","bytes":0,"running":true}]}`},
		{tank.HolderInfo{},
			`{"holder":"","blobs":0,"ingests":0,"layers":0,"rootfs":0,"snapshots":0,"bytes":0,"alone":0}`},
		{tank.HolderInfo{Holder: "h", Blobs: 1, Ingests: 2, Layers: 3, Rootfs: 4, Snapshots: 5, Bytes: 6,
			Exclusive: 7, Freed: 8, Running: true,
			Database: "d", Seen: moment, Connected: true},
			`{"holder":"h","blobs":1,"ingests":2,"layers":3,"rootfs":4,"snapshots":5,"bytes":6,"alone":7,"freed":8,` +
				`"running":true,` +
				`"database":"d","seen":"2026-01-02T03:04:05.000006Z","connected":true}`},
	} {
		if got, err := json.Marshal(tc.value); err != nil || string(got) != tc.want {
			t.Errorf("%T: %s, %v, want %s", tc.value, got, err, tc.want)
		}
	}
}
