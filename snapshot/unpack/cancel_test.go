package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/beneath"
	"github.com/tank-snapshotter/tank/snapshot/internal/tree"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// TestLoopsEnd checks that every loop over the entries of a layer tests its context, so that it ends soon after the
// context.
func TestLoopsEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make whiteouts")
	}
	const n = 2000
	many := func(item func(i int) u.Item, more ...u.Item) []byte {
		var items []u.Item
		for i := range n {
			items = append(items, item(i))
		}
		return u.Tar(t, append(items, more...)...)
	}
	file := func(i int) u.Item { return u.F(fmt.Sprint("a/", i), "") }
	files := many(file)
	extract := func(ctx context.Context, dir string, tar []byte) error {
		_, err := unpack.Extract(ctx, openDir(t, dir), bytes.NewReader(tar), nil)
		return err
	}
	for _, row := range []struct {
		testName string
		every    int // at most this many entries between two checks of the context
		before   func(dir string) error
		run      func(ctx context.Context, dir string) error
	}{
		{"extraction", 1, nil, func(ctx context.Context, dir string) error { return extract(ctx, dir, files) }},
		{"whiteouts", 1, nil, func(ctx context.Context, dir string) error {
			return extract(ctx, dir, many(func(i int) u.Item { return u.W(fmt.Sprint("a/.wh.", i)) }))
		}},
		{"a replaced directory", 1, nil, func(ctx context.Context, dir string) error {
			return extract(ctx, dir, many(file, u.F("a", "")))
		}},
		{"walk", 1, func(dir string) error { return extract(context.Background(), dir, files) },
			func(ctx context.Context, dir string) error {
				return tree.Walk(ctx, openDir(t, dir), func(*entry.Entry, tree.InodeID) error { return nil })
			}},
		{"removal", 1024, func(dir string) error { return extract(context.Background(), dir, files) },
			func(ctx context.Context, dir string) error {
				return beneath.RemoveAll(ctx, openDir(t, filepath.Dir(dir)), filepath.Base(dir), nil)
			}},
	} {
		t.Run(row.testName, func(t *testing.T) {
			run := func(end int) (*u.Countdown, error) {
				dir := filepath.Join(memoryDir(t), "d")
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if row.before != nil {
					if err := row.before(dir); err != nil {
						t.Fatal(err)
					}
				}
				c := u.NewCountdown(end)
				defer c.Cancel()
				return c, row.run(c, dir)
			}
			c, err := run(0)
			if err != nil {
				t.Fatal(err)
			}
			checks := c.Calls()
			if checks < n/row.every {
				t.Errorf("the context was checked %d times for %d entries", checks, n)
			}
			if _, err := run(checks / 2); !errors.Is(err, context.Canceled) {
				t.Errorf("error after the context ended: %v", err)
			}
		})
	}
}

// TestGrowth checks that an extraction requests memory and disk space before it uses them, and ends if a request is
// refused.
func TestGrowth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const n = 3000
	var items []u.Item
	for i := range n {
		items = append(items, u.F(fmt.Sprint("some/where/", i), "12345"))
	}
	tar := u.Tar(t, items...)
	refused := errors.New("refused")
	var memory, disk int64
	enough := unpack.Options{
		Memory: func(_ context.Context, bytes int64) error { memory += bytes; return nil },
		Room:   func(bytes int64) error { disk += bytes; return nil },
	}
	for _, row := range []struct {
		testName string
		opts     unpack.Options
		wantErr  error
	}{
		{"enough", enough, nil},
		{"no memory", unpack.Options{Memory: func(context.Context, int64) error { return refused }}, refused},
		{"no room", unpack.Options{Room: func(int64) error { return refused }}, refused},
		{"strings", unpack.Options{Limits: tarlayer.Limits{Strings: 1000}}, stream.ErrInvalidLayer},
	} {
		t.Run(row.testName, func(t *testing.T) {
			_, err := unpack.Extract(context.Background(), openDir(t, memoryDir(t)), bytes.NewReader(tar), &row.opts)
			if !errors.Is(err, row.wantErr) {
				t.Errorf("error %v, want %v", err, row.wantErr)
			}
		})
	}
	if memory < n*200 || memory > n*400 || disk < n*(4096+5) {
		t.Errorf("requested %d bytes of memory and %d of disk", memory, disk)
	}
}
