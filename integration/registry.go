package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is the distribution registry with a filesystem store, behind a Proxy of ours.
type Registry struct {
	*Proxy
	Backend string // host:port of the real one; images are pushed there
	proc    *Process
	built   map[string]BuiltImage // what PushBuilt pushed, by name
}

// NewRegistry starts a registry and the proxy before it.
func (e *Env) NewRegistry() *Registry {
	e.t.Helper()
	backend := freeAddr(e)
	if err := os.WriteFile(e.Path("registry.yml"), []byte(registryConfig(e.Path("registry"), backend)),
		0o644); err != nil {
		e.t.Fatal(err)
	}
	r := &Registry{Backend: backend, proc: e.Start("registry", "registry", "serve", e.Path("registry.yml"))}
	Eventually(e.t, 20*time.Second, "the registry answers", func() bool {
		if !r.proc.Running() {
			e.t.Fatalf("registry ended: %s", tail(r.proc.Log, 4000))
		}
		resp, err := http.Get("http://" + backend + "/v2/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	r.Proxy = NewProxy(e.t, backend)
	return r
}

// registryConfig is the configuration of a registry that keeps its files in dir and listens on addr.
func registryConfig(dir, addr string) string {
	return fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}
http: {addr: %s}
`, dir, addr)
}

func freeAddr(e *Env) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Push pushes the image that an OCI layout calls ref as name (repository:tag) and returns its description.
func (r *Registry) Push(layout, ref, name string) Image {
	r.t.Helper()
	img, err := ReadImage(layout, ref)
	if err == nil {
		err = Push(layout, ref, "http://"+r.Backend, name)
	}
	if err != nil {
		r.t.Fatalf("push %s: %v", name, err)
	}
	return img
}

// PushBuilt pushes an image in memory as name (repository:tag).
func (r *Registry) PushBuilt(img BuiltImage, name string) {
	r.t.Helper()
	layout := r.t.TempDir()
	if err := WriteLayout(layout, map[string]BuiltImage{"it": img}); err != nil {
		r.t.Fatal(err)
	}
	r.Push(layout, "it", name)
	if r.built == nil {
		r.built = map[string]BuiltImage{}
	}
	r.built[name] = img
}

// PushAs gives an image in the registry a further name (repository:tag).
func (r *Registry) PushAs(name, further string) {
	r.t.Helper()
	r.PushBuilt(r.built[name], further)
}

// heldTail is how much HoldLayers holds of a big blob. containerd passes a blob on in pieces of 1 MiB,
// so nobody sees the rest of what it has received. Of a small blob, half is held.
const heldTail = 32 << 10

// HoldLayers holds the last bytes of every layer of img.
func (r *Registry) HoldLayers(img Image) {
	for _, l := range img.Layers {
		r.Hold(l.Digest, l.Size-min(l.Size/2, heldTail))
	}
}

// Image is what a test needs to know about an image in a layout or registry.
type Image struct {
	Manifest, Config ocispec.Descriptor
	Layers           []ocispec.Descriptor
	DiffIDs          []digest.Digest
}
