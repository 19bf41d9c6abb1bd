package rootdir

import (
	"context"
	"errors"
	"os"
	"time"
)

// leftoverDelay is how long after the opening a process looks for what earlier ones left. A command
// that only answers from its records has ended by then, so looking costs it nothing. A sweep does
// not wait for it.
const leftoverDelay = 500 * time.Millisecond

// DeleteLeftovers deletes in the background what earlier processes left in the pools of
// Options.Pools: staged names (I4), and everything in the pool Scratch. It is called once, before
// anything is made in the root.
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

// Leftovers lists the staged names that earlier processes left in the pools. With an error it
// returns those that it found before.
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

// Unrecorded returns the paths of the entries of a pool that have no record. recorded returns the names of those that
// have one; it is not called for an empty pool. If it can't read a record it returns an error, because that may be the
// record of any of the entries.
func (d *Dir) Unrecorded(pool string, recorded func() (map[string]bool, error)) ([]string, error) {
	names, err := os.ReadDir(d.Path(pool))
	if err != nil || len(names) == 0 {
		return nil, err
	}
	known, err := recorded()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, n := range names {
		if !known[n.Name()] && !IsStaged(n.Name()) && !IsLostFound(n.Name()) {
			gone = append(gone, d.Path(pool, n.Name()))
		}
	}
	return gone, nil
}
