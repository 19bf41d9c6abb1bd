package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// manyLayers returns an image with that many layers, each with files in many directories, and its tree. Images of
// different seeds share no layer.
func manyLayers(t *testing.T, seed, layers int) (BuiltImage, []Node) {
	t.Helper()
	var all [][]Entry
	for i := range layers {
		var layer []Entry
		for d := range 10 {
			layer = append(layer, dir(fmt.Sprintf("dir%02d", d), 0o755),
				dir(fmt.Sprintf("dir%02d/layer%02d", d, i), 0o755))
			for f := range 3 {
				name := fmt.Sprintf("dir%02d/layer%02d/file%d", d, i, f)
				layer = append(layer, file(name, 0o644, noise(uint64(seed<<20|i<<10|d<<3|f), 3000)))
			}
		}
		all = append(all, layer)
	}
	tree, err := ExpectedTree(all)
	if err != nil {
		t.Fatal(err)
	}
	b, err := BuildImage(all, ocispec.ImageConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return b, tree
}

// TestFewDescriptors: a pull of an image with 20 layers needs no more than 64 descriptors, and ten pulls at once
// through a daemon no more than 128. A daemon that has few or no descriptors left still answers, and recovers.
func TestFewDescriptors(t *testing.T) {
	requireProgram(t, "prlimit")
	const pulls = 10
	e := New(t)
	r := e.NewRegistry()
	images := make([]BuiltImage, pulls)
	trees := make([][]Node, pulls)
	for i := range pulls {
		images[i], trees[i] = manyLayers(t, i, 20)
		r.PushBuilt(images[i], fmt.Sprintf("test/many%d:1", i))
	}
	t.Run("one with 64", func(t *testing.T) {
		e.Use(t)
		k := e.NewTank()
		out := e.MustRun(limited(64, k.Args("pull", "--progress", "none", r.Ref("test/many0:1"))...)...)
		CheckTree(t, "pull", trees[0], strings.TrimSpace(out))
	})
	t.Run("ten with 128", func(t *testing.T) {
		e.Use(t)
		k := e.NewTank()
		k.Descriptors = 128
		k.Serve()
		results := make([]Result, pulls)
		done := make(chan int)
		for i := range pulls {
			go func() {
				results[i] = k.Run("pull", "--progress", "none", r.Ref(fmt.Sprintf("test/many%d:1", i)))
				done <- i
			}()
		}
		for range pulls {
			i := <-done
			if results[i].Code != 0 {
				t.Errorf("%s", results[i])
				continue
			}
			CheckTree(t, fmt.Sprint("pull ", i), trees[i], strings.TrimSpace(results[i].Stdout))
		}
	})
	t.Run("12 left", func(t *testing.T) {
		e.Use(t)
		k := e.NewTank()
		k.Serve()
		k.Pull(r.Ref("test/many0:1")) // opens what the daemon opens once
		limit := uint64(k.Daemon().descriptors(t) + 12)
		k.Daemon().setDescriptors(t, limit)
		began := time.Now()
		for i := 1; i < 4; i++ {
			k.Run("images")
			if res := k.Run("pull", "--progress", "none", r.Ref(fmt.Sprintf("test/many%d:1", i))); res.Code != 0 {
				t.Logf("the pull failed, which is allowed here: %s", res)
			}
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("with 12 left: answered after %v", took)
		}
		k.Daemon().setDescriptors(t, uint64(k.Daemon().descriptors(t)))
		began = time.Now()
		k.Run("images")
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("with none left: answered after %v", took)
		}
		k.Daemon().setDescriptors(t, 1024)
		CheckTree(t, "afterwards", trees[5], k.Pull(r.Ref("test/many5:1")))
	})
}

// descriptors returns how many descriptors the process has open.
func (p *Process) descriptors(t *testing.T) int {
	t.Helper()
	return len(entriesOf(t, fmt.Sprintf("/proc/%d/fd", p.Pid())))
}

// setDescriptors changes the limit of a running process.
func (p *Process) setDescriptors(t *testing.T, n uint64) {
	t.Helper()
	if err := unix.Prlimit(p.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1024}, nil); err != nil {
		t.Fatal(err)
	}
}

func entriesOf(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}
