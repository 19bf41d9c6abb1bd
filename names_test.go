package tank_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// pushNamed pushes an index of two platforms. One of them is in a nested index.
func pushNamed(t *testing.T, reg *registrytest.Registry, tags ...string) (
	index, nested, s390x, arm64 ocispec.Descriptor,
) {
	t.Helper()
	s390x = pushVariant(t, reg, "", variant{"s390x", "linux/s390x", config("s390x", "")})
	arm64 = pushVariant(t, reg, "", variant{"arm64", "linux/arm64", config("arm64", "")})
	nested = reg.Index("", arm64)
	for _, tag := range tags {
		index = reg.Index(tag, s390x, nested)
	}
	return index, nested, s390x, arm64
}

// TestNames pulls an image by tag and then finds it offline under each of its other names. Such a
// pull keeps the image under the new name.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, daemon := range []bool{false, true} {
		reg := registrytest.New(t)
		index, nested, s390x, arm64 := pushNamed(t, reg, "1", "latest")
		other := digest.FromString("other")
		for _, tc := range []struct {
			name, ref, platform string
			want                string // content of the image; "": not found
			digest              digest.Digest
		}{
			{"tag", ":1", "linux/s390x", "s390x", index.Digest},
			{"no tag", "", "linux/arm64", "arm64", index.Digest},
			{"latest", ":latest", "linux/arm64", "arm64", index.Digest},
			{"index", "@" + index.Digest.String(), "linux/s390x", "s390x", index.Digest},
			{"index, the other platform", "@" + index.Digest.String(), "linux/arm64", "arm64", index.Digest},
			{"tag and index", ":1@" + index.Digest.String(), "linux/s390x", "s390x", index.Digest},
			{"another tag and index", ":2@" + index.Digest.String(), "linux/arm64", "arm64", index.Digest},
			{"manifest", "@" + s390x.Digest.String(), "linux/s390x", "s390x", s390x.Digest},
			{"manifest behind an index", "@" + arm64.Digest.String(), "linux/arm64", "arm64", arm64.Digest},
			{"manifest, another platform", "@" + arm64.Digest.String(), "linux/s390x", "", ""},
			{"another digest", "@" + other.String(), "linux/arm64", "", ""},
			{"another repository", "/y@" + index.Digest.String(), "linux/arm64", "", ""},
		} {
			t.Run(fmt.Sprintf("daemon=%v/%s", daemon, strings.ReplaceAll(tc.name, ", ", " - ")), func(t *testing.T) {
				r := newRoot(t, daemon)
				repo := reg.Host + "/x"
				for tag, p := range map[string]string{"1": "linux/s390x", "latest": "linux/arm64"} {
					_, err := r.pull(t, repo+":"+tag, &tank.PullOptions{Platform: p})
					must(t, err)
				}
				if tc.ref == ":1" || tc.ref == "" {
					tc.platform = map[string]string{":1": "linux/s390x", "": "linux/arm64"}[tc.ref]
				}
				opts := &tank.PullOptions{Offline: true, Platform: tc.platform}
				img, err := r.pull(t, repo+tc.ref, opts)
				if tc.want == "" {
					var missing *tank.NotCached
					if !errors.As(err, &missing) {
						t.Errorf("%+v, %v", img, err)
					}
					return
				}
				must(t, err)
				b, _ := os.ReadFile(filepath.Join(img.Rootfs, "which"))
				if string(b) != tc.want || img.Digest != tc.digest || !img.Cached {
					t.Errorf("%q of %+v", b, img)
				}
				// A pulled name stays when the other names are removed, with the indexes on its way to the manifest.
				r.with(t, func(tk *tank.Tank) {
					infos, err := tk.Images(context.Background())
					must(t, err)
					for _, i := range infos {
						if i.Ref != img.Ref {
							if err := tk.Remove(context.Background(), i.Ref); err != nil && !errdefs.IsNotFound(err) {
								t.Error(err)
							}
						}
					}
					_, err = tk.GC(context.Background())
					must(t, err)
					_, here := tk.Content().Size(nested.Digest)
					if tc.digest == index.Digest && tc.want == "arm64" && !here {
						t.Error("the nested index was collected")
					}
				})
				again, err := r.pull(t, repo+tc.ref, opts)
				if err != nil || again.Rootfs != img.Rootfs {
					t.Errorf("after the other names were removed: %+v, %v", again, err)
				}
				if refs, missing := layoutRefs(t, r.dir); !slices.Equal(refs, []string{img.Ref}) || len(missing) > 0 {
					t.Errorf("index.json has %q, missing blobs %q", refs, missing)
				}
			})
		}
	}
}

// TestDigestNeedsNoRegistry shows that a pull by digest makes no request if a pull by tag has
// downloaded the image.
func TestDigestNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	index, _, _, _ := pushNamed(t, reg, "1")
	r := newRoot(t, false)
	_, err := r.pull(t, reg.Host+"/x:1", &tank.PullOptions{Platform: "linux/s390x"})
	must(t, err)
	before := len(reg.Requests())
	_, err = r.pull(t, reg.Host+"/x@"+index.Digest.String(), &tank.PullOptions{Platform: "linux/s390x"})
	must(t, err)
	if more := reg.Requests()[before:]; len(more) > 0 {
		t.Errorf("requests: %q", more)
	}
	// The root lacks the other platform, so the pull requests it.
	_, err = r.pull(t, reg.Host+"/x@"+index.Digest.String(), &tank.PullOptions{Platform: "linux/arm64"})
	must(t, err)
}

// TestNamesInEveryCommand uses each spelling of a name with each operation that takes a name.
func TestNamesInEveryCommand(t *testing.T) {
	t.Parallel()
	const long = "docker.io/library/tank-test:latest"
	target := "@" + digest.FromString("x").String()
	for _, name := range []string{
		"tank-test", "tank-test:latest", "library/tank-test", "docker.io/tank-test",
		"index.docker.io/library/tank-test",
		"docker.io/library/tank-test:latest",
	} {
		r := &root{dir: filepath.Join(t.TempDir(), "root")}
		r.with(t, func(tk *tank.Tank) {
			ctx := context.Background()
			d, err := tk.Inspect(ctx, name)
			if !errdefs.IsNotFound(err) {
				t.Errorf("inspect %s: %+v, %v", name, d, err)
			}
			for op, err := range map[string]error{
				"pull":    second(tk.Pull(ctx, name, &tank.PullOptions{Offline: true})),
				"inspect": second(tk.Inspect(ctx, name)),
				"rm":      tk.Remove(ctx, name), "release": second(tk.Release(ctx, "image/"+name, nil)),
			} {
				if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), long) {
					t.Errorf("%s %s: %v", op, name, err)
				}
			}
			if err := tk.Remove(ctx, name+target); !errdefs.IsNotFound(err) {
				t.Errorf("rm %s%s: %v", name, target, err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// TestDigestForms inspects, removes and releases an image by the digests of its index and its manifest.
func TestDigestForms(t *testing.T) {
	t.Parallel()
	reg := registrytest.New(t)
	index, _, s390x, _ := pushNamed(t, reg, "1", "2")
	r, repo, ctx := newRoot(t, false), reg.Host+"/x", context.Background()
	opts := tank.PullOptions{Platform: "linux/s390x"}
	for _, tag := range []string{":1", ":2"} {
		_, err := r.pull(t, repo+tag, &opts)
		must(t, err)
	}
	r.with(t, func(tk *tank.Tank) {
		for _, d := range []digest.Digest{index.Digest, s390x.Digest} {
			ref := repo + "@" + d.String()
			details, err := tk.Inspect(ctx, ref)
			must(t, err)
			if details.Ref != ref || details.Target.Digest != d || len(details.Platforms) != 1 {
				t.Errorf("inspect: %+v", details)
			}
			// A digest does not remove the tags.
			err = tk.Remove(ctx, ref)
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), repo+":1, "+repo+":2") &&
				!strings.Contains(err.Error(), repo+":2, "+repo+":1") {
				t.Errorf("rm: %v", err)
			}
			// A pull by digest adds a record of its own, which can be removed alone.
			offline := opts
			offline.Offline = true
			_, err = tk.Pull(ctx, ref, &offline)
			must(t, err)
			must(t, tk.Remove(ctx, ref))
			for _, tag := range []string{":1", ":2"} {
				_, err := tk.Pull(ctx, repo+tag, &offline)
				must(t, err)
			}
		}
		if _, err := tk.Release(ctx, "image/"+repo+":1", nil); err != nil {
			t.Error(err)
		}
		must(t, tk.Remove(ctx, repo+":2"))
		if _, err := tk.Inspect(ctx, repo+"@"+index.Digest.String()); !errdefs.IsNotFound(err) {
			t.Errorf("inspect after the tags are gone: %v", err)
		}
		holders, err := tk.Holders(ctx)
		must(t, err)
		for _, h := range holders {
			if h.Holder != string(metadata.Containerd) {
				t.Errorf("holder %+v", h)
			}
		}
	})
}

// TestDigestKeepsPath shows what protects the path that a pull returned. After a pull by digest,
// the path stays when the tag moves and gc runs; without such a pull, gc deletes it.
func TestDigestKeepsPath(t *testing.T) {
	t.Parallel()
	for _, pinned := range []bool{false, true} {
		reg := registrytest.New(t)
		push(t, reg, "1", base)
		r, ref := newRoot(t, false), reg.Host+"/x:1"
		img, err := r.pull(t, ref, nil)
		must(t, err)
		if pinned {
			again, err := r.pull(t, reg.Host+"/x@"+img.Digest.String(), nil)
			if err != nil || again.Rootfs != img.Rootfs {
				t.Errorf("by digest: %+v, %v", again, err)
			}
		}
		push(t, reg, "1", base, base[:1])
		_, err = r.pull(t, ref, nil)
		must(t, err)
		r.with(t, func(tk *tank.Tank) { must(t, second(tk.GC(context.Background()))) })
		if _, err := os.Stat(img.Rootfs); (err == nil) != pinned {
			t.Errorf("pinned %v: %v", pinned, err)
		}
	}
}
