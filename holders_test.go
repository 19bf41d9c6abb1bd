package tank_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank"
	"github.com/tank-snapshotter/tank/metadata"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and in CI nothing may skip")
	}
	t.Skip("needs root, for overlay mounts")
}

// layerOf builds a layer: its tar, its blob and the descriptor of the blob.
func layerOf(t *testing.T, items ...Item) (raw, blob []byte, desc ocispec.Descriptor) {
	t.Helper()
	raw = Tar(t, items...)
	blob = Gzip(t, raw)
	return raw, blob,
		ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob),
			Size: int64(len(blob))}
}

// unpackAs makes the calls of a containerd that pulls an image: it writes the blobs and unpacks the
// chain of layers. It prepares a container on top and returns the mounts of the container.
func unpackAs(t *testing.T, tk *tank.Tank, layers ...[]Item) []mount.Mount {
	t.Helper()
	ctx := context.Background()
	sn := tk.Snapshots().For(metadata.Containerd)
	parent := ""
	for i, items := range layers {
		raw, blob, desc := layerOf(t, items...)
		err := content.WriteBlob(ctx, tk.Content().For(metadata.Containerd), "layer-"+desc.Digest.String(),
			strings.NewReader(string(blob)), desc)
		must(t, err)
		key := fmt.Sprintf("default/%d/extract-1 layer", i)
		mounts, err := sn.Prepare(ctx, key, parent,
			snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": "x"}))
		must(t, err)
		applied, err := tk.Snapshots().Apply(ctx, desc, mounts)
		must(t, err)
		if applied.Digest != digest.FromBytes(raw) {
			t.Fatalf("diff ID %s", applied.Digest)
		}
		// The names go down the alphabet, so that parents do not sort before their children.
		name := fmt.Sprintf("default/%d/%c", i, 'z'-rune(i))
		must(t, sn.Commit(ctx, name, key))
		parent = name
	}
	mounts, err := sn.Prepare(ctx, "default/9/container", parent)
	must(t, err)
	return mounts
}

func holderOf(t *testing.T, tk *tank.Tank, name string) tank.HolderInfo {
	t.Helper()
	holders, err := tk.Holders(context.Background())
	must(t, err)
	i := slices.IndexFunc(holders, func(h tank.HolderInfo) bool { return h.Holder == name })
	if i < 0 {
		t.Fatalf("%s is not among %+v", name, holders)
	}
	return holders[i]
}

// TestRelease shows that Holders reports what each holder keeps, and that Release frees exactly
// what only this holder kept.
func TestRelease(t *testing.T) {
	requireRoot(t)
	ctx := context.Background()
	reg := registrytest.New(t)
	shared := []Item{F("shared", strings.Repeat("s", 10000))}
	own := []Item{F("own", strings.Repeat("o", 20000))}
	_, sharedBlob, _ := layerOf(t, shared...)
	raw, ownBlob, _ := layerOf(t, own...)
	push(t, reg, "1", shared)
	ref := reg.Host + "/x:1"
	r := newRoot(t, true)
	pulled, err := r.pull(t, ref, nil)
	must(t, err)
	r.with(t, func(tk *tank.Tank) {
		if _, err := tk.Release(ctx, "containerd", nil); !errdefs.IsNotFound(err) {
			t.Errorf("containerd holds something before its first call: %v", err)
		}
		unpackAs(t, tk, shared, own)
		must(t, os.WriteFile(filepath.Join(r.dir, "snapshots", newestDir(t, r.dir), "fs", "written"),
			make([]byte, 5000), 0o600))
		before := holderOf(t, tk, "image/"+ref)
		if before.Blobs != 3 || before.Layers != 1 || before.Rootfs != 1 || before.Snapshots != 0 ||
			before.Exclusive >= before.Bytes || before.Exclusive < 10000 {
			t.Errorf("image: %+v", before)
		}
		c := holderOf(t, tk, "containerd")
		if c.Blobs != 2 || c.Layers < 2 || c.Rootfs != 0 || c.Snapshots != 3 || c.Ingests != 0 ||
			c.Exclusive < int64(len(ownBlob))+20000+5000 || c.Bytes < c.Exclusive+10000+int64(len(sharedBlob)) {
			t.Errorf("containerd: %+v", c)
		}
		holders, err := tk.Holders(ctx)
		must(t, err)
		if len(holders) != 2 {
			t.Errorf("%d holders: %+v", len(holders), holders)
		}
		for name, want := range map[string]error{
			"nonsense": errdefs.ErrNotFound, "image/none": errdefs.ErrNotFound, "pull/none": errdefs.ErrNotFound,
			"":                             errdefs.ErrNotFound,
			"snapshot/default/9/container": errdefs.ErrInvalidArgument,
		} {
			if _, err := tk.Release(ctx, name, &tank.ReleaseOptions{Force: true}); !errdefs.IsNotFound(err) &&
				!errdefs.IsInvalidArgument(err) {
				t.Errorf("release %q: %v, want %v", name, err, want)
			}
		}
		// An unfinished download.
		w, err := tk.Content().For(metadata.Containerd).Writer(ctx, content.WithRef("default/1/layer-sha256:half"))
		must(t, err)
		_, err = w.Write([]byte("half"))
		must(t, err)
		must(t, w.Close())
		if c := holderOf(t, tk, "containerd"); c.Ingests != 1 {
			t.Errorf("containerd with an ingest: %+v", c)
		}
		released, err := tk.Release(ctx, "containerd", nil)
		must(t, err)
		if released.Snapshots != 3 || released.Blobs != 2 || released.Ingests != 1 {
			t.Errorf("released: %+v", released)
		}
		if _, err := tk.Release(ctx, "containerd", nil); !errdefs.IsNotFound(err) {
			t.Errorf("second release: %v", err)
		}
		if after := holderOf(t, tk, "image/"+ref); after.Exclusive != after.Bytes || after.Bytes != before.Bytes {
			t.Errorf("the image holds %+v, before %+v", after, before)
		}
	})
	for _, name := range r.left(t) {
		if strings.HasPrefix(name, "snapshots/") || strings.HasPrefix(name, "ingest/") ||
			strings.Contains(name, digest.FromBytes(ownBlob).Encoded()) {
			t.Errorf("left: %s", name)
		}
	}
	offline, err := r.pull(t, ref, &tank.PullOptions{Offline: true})
	must(t, err)
	if offline.Rootfs != pulled.Rootfs {
		t.Errorf("the image now has another rootfs: %s", offline.Rootfs)
	}
	r.with(t, func(tk *tank.Tank) {
		_, err := tk.Release(ctx, "image/"+ref, nil)
		must(t, err)
	})
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left of %d bytes: %q", len(raw), left)
	}
}

// newestDir returns the newest directory below snapshots/.
func newestDir(t *testing.T, root string) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "snapshots"))
	must(t, err)
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name()[0] == '.' }) // waits for deletion
	if len(entries) == 0 {
		t.Fatal("no snapshot has a directory")
	}
	return slices.MaxFunc(entries, func(a, b os.DirEntry) int {
		return len(a.Name())*1000 + strings.Compare(a.Name(), b.Name()) - len(b.Name())*1000
	}).Name()
}

// TestReleaseMounted shows that the holder of containerd is released while a container has a mount
// only with Force.
func TestReleaseMounted(t *testing.T) {
	requireRoot(t)
	ctx := context.Background()
	for _, how := range []string{"overlay", "bind"} {
		t.Run(how, func(t *testing.T) {
			r := newRoot(t, true)
			r.with(t, func(tk *tank.Tank) {
				mounts := unpackAs(t, tk, []Item{F("a", "1")}, []Item{F("b", "2")})
				if how == "bind" { // as in directory mode, or for a snapshot without parents
					mounts = []mount.Mount{{Type: "bind",
						Source:  filepath.Join(r.dir, "snapshots", newestDir(t, r.dir), "fs"),
						Options: []string{"rbind", "rw"}}}
				}
				target := t.TempDir()
				must(t, mount.All(mounts, target))
				_, err := tk.Release(ctx, "containerd", nil)
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(fmt.Sprint(err), target) {
					t.Errorf("release under a mount: %v", err)
				}
				if c := holderOf(t, tk, "containerd"); c.Snapshots != 3 {
					t.Errorf("a refused release freed something: %+v", c)
				}
				must(t, mount.UnmountAll(target, 0))
				_, err = tk.Release(ctx, "containerd", nil)
				must(t, err)
			})
			if left := r.left(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
	t.Run("elsewhere", func(t *testing.T) { // a containerd with a mount namespace of its own, or a container
		r := newRoot(t, true)
		r.with(t, func(tk *tank.Tank) {
			fs, target := unpackAs(t, tk, []Item{F("a", "1")}, []Item{F("b", "2")}), t.TempDir()
			cmd := exec.Command("sh", "-c",
				`mount --make-rprivate / && mount -t overlay -o "$1" overlay "$2" && echo mounted && read end`, "sh",
				strings.Join(fs[0].Options, ","), target)
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
				t.Fatal(line, err)
			}
			if _, err := tk.Release(ctx, "containerd", nil); !errdefs.IsFailedPrecondition(err) ||
				!strings.Contains(fmt.Sprint(err), target) {
				t.Errorf("release under a mount: %v", err)
			}
			must(t, in.Close())
			if err := cmd.Wait(); err == nil {
				t.Error("the line came")
			}
			_, err = tk.Release(ctx, "containerd", nil)
			must(t, err)
		})
	})
	t.Run("force", func(t *testing.T) {
		r := newRoot(t, true)
		r.with(t, func(tk *tank.Tank) {
			target := t.TempDir()
			must(t, mount.All(unpackAs(t, tk, []Item{F("a", "1")}), target))
			defer func() { must(t, mount.UnmountAll(target, 0)) }()
			_, err := tk.Release(ctx, "containerd", &tank.ReleaseOptions{Force: true})
			must(t, err)
		})
	})
}

// TestReleasePull shows that the partial downloads of an unfinished pull can be released once the
// pull has ended.
func TestReleasePull(t *testing.T) {
	ctx := context.Background()
	reg := registrytest.New(t)
	good, bad := reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, Tar(t, base...))),
		reg.Blob(ocispec.MediaTypeImageLayerGzip, Gzip(t, Tar(t, F("x", "y"))))
	reg.Image("1", platforms.DefaultSpec(), []ocispec.Descriptor{good, bad}, []digest.Digest{
		digest.FromBytes(Tar(t, base...)), digest.FromBytes(Tar(t, F("x", "y"))),
	})
	asked, answer := make(chan bool), make(chan bool)
	reg.Fault = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, bad.Digest.String()) {
			return false
		}
		select {
		case asked <- true:
			<-answer
		default:
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	ref := reg.Host + "/x:1"
	r := newRoot(t, false)
	r.with(t, func(tk *tank.Tank) {
		done := make(chan error, 1)
		go func() {
			_, err := tk.Pull(ctx, ref, nil)
			done <- err
		}()
		<-asked
		if h := holderOf(t, tk, "pull/"+ref); !h.Running {
			t.Errorf("running: %+v", h)
		}
		if _, err := tk.Release(ctx, "pull/"+ref,
			&tank.ReleaseOptions{Force: true}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("release while the pull runs: %v", err)
		}
		close(answer)
		if err := <-done; !errdefs.IsNotFound(err) {
			t.Fatalf("pull: %v", err)
		}
		if h := holderOf(t, tk, "pull/"+ref); h.Running || h.Blobs == 0 {
			t.Errorf("ended: %+v", h)
		}
		_, err := tk.Release(ctx, "pull/"+ref, nil)
		must(t, err)
		if holders, err := tk.Holders(ctx); err != nil || len(holders) > 0 {
			t.Errorf("left: %+v, %v", holders, err)
		}
	})
	r.with(t, func(tk *tank.Tank) { // a canceled unpack may have left something in staging (I4)
		_, err := tk.GC(ctx)
		must(t, err)
	})
	if left := r.left(t); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestProbe shows that an open root answers Probe, and that a late answer is an error.
func TestProbe(t *testing.T) {
	newRoot(t, false).with(t, func(tk *tank.Tank) {
		must(t, tk.Probe(context.Background()))
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		// Probe may answer although the context has ended; an error must be that of the context.
		if err := tk.Probe(ended); err != nil && !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Error(err)
		}
	})
}
