package platform_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/internal/platform"
)

func Example() {
	want, err := platform.Parse("linux/arm/v7")
	if err != nil {
		panic(err)
	}
	fmt.Println(want.Match(ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}))
	fmt.Println(want.Match(ocispec.Platform{OS: "linux", Architecture: "arm64"}))
	// Output:
	// true
	// false
}

// TestChoice sorts the entries of an index by how well they suit. Entries that are not in want do not suit.
func TestChoice(t *testing.T) {
	arm := []string{"linux/arm", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"}
	for _, tc := range []struct {
		asked   string
		entries []string
		want    []string
	}{
		{"linux/amd64", []string{"linux/386", "linux/amd64/v2", "linux/amd64", "linux/arm64"}, []string{"linux/amd64"}},
		{"linux/amd64", []string{"linux/amd64/v2"}, nil},
		{"linux/amd64", []string{"linux/386"}, nil},
		{"linux/amd64/v1", []string{"linux/amd64"}, []string{"linux/amd64"}},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v4", "linux/amd64/v2"},
			[]string{"linux/amd64/v2", "linux/amd64"}},
		{"linux/arm", arm, []string{"linux/arm", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5", "linux/arm/v8"}},
		{"linux/arm/v7", arm, []string{"linux/arm", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"}},
		{"linux/arm/v6", arm, []string{"linux/arm/v6", "linux/arm/v5", "linux/arm"}},
		{"linux/arm/v5", arm, []string{"linux/arm/v5", "linux/arm"}},
		{"linux/armhf", []string{"linux/arm", "linux/arm/v6"}, []string{"linux/arm", "linux/arm/v6"}},
		{"linux/arm64", []string{"linux/arm/v7", "linux/arm64/v9", "linux/arm64/v8"},
			[]string{"linux/arm64/v8", "linux/arm64/v9"}},
		{"linux/arm64/v8", []string{"linux/arm64/v9", "linux/arm64"}, []string{"linux/arm64"}},
		{"linux/arm64/v9", []string{"linux/arm64"}, []string{"linux/arm64"}},
		{"linux/arm64", []string{"linux(+erofs)/arm64", "linux/arm64"}, []string{"linux/arm64"}},
		{"linux/riscv64", []string{"linux/amd64", "windows/riscv64"}, nil},
	} {
		want, err := platform.Parse(tc.asked)
		if err != nil {
			t.Fatal(err)
		}
		var fit []string
		for _, e := range sorted(want, tc.entries) {
			fit = append(fit, platforms.FormatAll(e))
		}
		if !slices.Equal(fit, tc.want) {
			t.Errorf("%s of %q: %q, want %q", tc.asked, tc.entries, fit, tc.want)
		}
	}
}

// sorted returns the entries that suit, the best first.
func sorted(want platform.Wanted, entries []string) (fit []ocispec.Platform) {
	for _, e := range entries {
		p := platforms.MustParse(e)
		if want.Match(p) {
			fit = append(fit, p)
		}
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Platform) int {
		switch {
		case want.Less(a, b):
			return -1
		case want.Less(b, a):
			return 1
		}
		return 0
	})
	return fit
}

// TestConfigAlone compares the wanted platform with the config of a manifest without an index.
func TestConfigAlone(t *testing.T) {
	for _, tc := range []struct {
		asked, os, arch, variant string
		want                     string // what the manifest is taken for; "" if it does not suit
	}{
		{"linux/arm64", "linux", "arm64", "", "linux/arm64"},
		{"linux/arm64", "linux", "arm64", "v8", "linux/arm64/v8"},
		{"linux/arm64", "linux", "", "", "linux/arm64"},
		{"linux/arm64", "", "", "", "linux/arm64"},
		{"linux/arm64", "", "amd64", "", ""},
		{"linux/arm64", "windows", "", "", ""},
		{"linux/arm/v6", "linux", "arm", "", "linux/arm/v6"},
		{"linux/arm/v6", "linux", "arm", "v7", ""},
		{"linux/arm/v7", "linux", "arm", "v6", "linux/arm/v6"},
		{"linux/arm", "linux", "arm", "v6", "linux/arm/v6"},
		{"linux/amd64", "linux", "amd64", "v3", "linux/amd64/v3"},
		{"linux/amd64/v2", "linux", "amd64", "v3", ""},
		{"linux/amd64", "linux", "386", "", ""},
	} {
		want, err := platform.Parse(tc.asked)
		if err != nil {
			t.Fatal(err)
		}
		config := ocispec.Platform{
			OS: tc.os, Architecture: tc.arch, Variant: tc.variant, OSVersion: "10", OSFeatures: []string{"sse4"},
		}
		got := ""
		if want.Allows(config) {
			got = platforms.Format(want.Complete(config))
		}
		if got != tc.want {
			t.Errorf("%s of the config %s: %q, want %q", tc.asked, platform.Name(config), got, tc.want)
		}
	}
}

// TestContradicts compares the platform in a config with that of its manifest in the index.
func TestContradicts(t *testing.T) {
	for _, tc := range []struct {
		index, arch, variant string
		want                 bool
	}{
		{"linux/arm/v6", "arm", "", false},
		{"linux/arm", "arm", "v6", false},
		{"linux/arm64/v8", "arm64", "", false},
		{"linux/arm64", "aarch64", "v8", false},
		{"linux/arm/v6", "arm", "v7", true},
		{"linux/arm64", "amd64", "", true},
		{"linux/arm64", "", "", true},
	} {
		config := ocispec.Platform{OS: "linux", Architecture: tc.arch, Variant: tc.variant}
		if got := platform.Contradicts(config, platforms.MustParse(tc.index)); got != tc.want {
			t.Errorf("index %s, config %s: %v", tc.index, platform.Name(config), got)
		}
	}
}

func TestParse(t *testing.T) {
	if _, err := platform.Parse("a/b/c/d"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if w, err := platform.Parse(""); err != nil || !w.Exactly(platforms.DefaultSpec()) {
		t.Error(w, err)
	}
}
