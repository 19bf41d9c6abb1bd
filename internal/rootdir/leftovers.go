package rootdir

import (
	"context"
	"errors"
	"os"
	"time"
)

// leftoverDelay is how long after the opening a process looks for what earlier ones left. A command that only answers
// from its records has ended by then, so looking costs it nothing. A sweep does not wait for it.
const leftoverDelay = 500 * time.Millisecond

// DeleteLeftovers deletes in the background what earlier processes left in the pools of Options.Pools: staged names
// (I4), and everything in the pool Scratch. It is called once, before anything is made in the root.
func (d *Dir) DeleteLeftovers() error {
	entries, err := os.ReadDir(d.Path(Scratch))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var left []string
	for _, e := range entries { // listed at once, because this process makes files there, too
		left = append(left, d.Path(Scratch, e.Name()))
	}
	if len(left) > 0 {
		d.Delete(left...)
	}
	d.work.Add()
	d.leftover = time.AfterFunc(leftoverDelay, func() {
		defer d.work.Done()
		d.work.Go("leftovers", func(ctx context.Context) error {
			left, err := d.Leftovers(ctx, d.opts.Pools...)
			d.Delete(left...)
			return err
		})
	})
	return nil
}

// Leftovers lists the staged names that earlier processes left in the pools. With an error it returns those that it
// found before.
func (d *Dir) Leftovers(ctx context.Context, pools ...string) (paths []string, err error) {
	var dirs []string
	for _, pool := range pools {
		if pool == Scratch { // its names are not staged
			continue
		}
		dirs = append(dirs, d.Path(pool))
		if !nested[pool] {
			continue
		}
		var algorithms []os.DirEntry
		algorithms, err = os.ReadDir(d.Path(pool))
		for _, a := range algorithms {
			if a.IsDir() && !IsStaged(a.Name()) && !IsLostFound(a.Name()) {
				dirs = append(dirs, d.Path(pool, a.Name()))
			}
		}
	}
	for _, dir := range dirs {
		found, lerr := d.names.left(ctx, dir)
		paths, err = append(paths, found...), errors.Join(err, lerr)
	}
	return paths, err
}
