package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// bench is one scenario that is being run.
type bench struct {
	ctx   context.Context // ends with the program
	dir   string
	opts  options
	progs programs
	scenario
	gib int64 // size of each file system
}

// source is an image that a registry serves.
type source struct {
	image
	recipe recipe
	reg    *registry
	tree   string // what the first pull made
}

// row is one row of the table: a contender that pulls an image.
type row struct {
	contender
	src     *source
	samples []sample
	differs bool // its tree is not the first one's
}

// measure lets the scenario's contenders pull its images.
func (b *bench) measure(all []contender) ([]row, error) {
	var rows []row
	for i, r := range b.images {
		img, err := prepareImage(b.ctx, b.opts.cache, r, b.progs)
		if err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		reg, err := startRegistry(b.ctx, filepath.Join(b.dir, fmt.Sprintf("registry%d.yml", i)), img.store, b.progs)
		if err != nil {
			return nil, err
		}
		defer reg.end()
		src := &source{image: img, recipe: r, reg: reg}
		// The native snapshotter stores each layer with all layers below it, and ext4 has one inode for 16 KiB.
		b.gib = max(b.gib, 4, 6*img.Unpacked>>30+1, int64(img.Entries)*24<<10>>30+1)
		for _, c := range all {
			rows = append(rows, row{contender: c, src: src})
		}
	}
	if b.opts.fsSize > 0 {
		b.gib = int64(b.opts.fsSize)
	}
	return rows, b.turns(rows)
}

// turns fills every row with a sample per round, each round beginning with another one.
func (b *bench) turns(rows []row) error {
	for round := range b.rounds {
		for i := range rows {
			r := &rows[(i+round)%len(rows)]
			s, err := b.quietly(r)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.samples = append(r.samples, s)
			fmt.Fprintf(os.Stderr,
				"%s %d/%d  %-16s %6.2f GB %6d entries  %6.2f s  %6.2f CPU s  %5.0f MB peak  (others %.2f CPU s)\n",
				b.name, round+1, b.rounds, r.name, float64(r.src.Unpacked)/1e9, r.src.Entries,
				s.wall.Seconds(), s.cpu.Seconds(), float64(s.rss)/1e6, s.elsewhere.Seconds())
		}
	}
	return nil
}

// quietly is once, repeated while others use the machine too much, if that is asked for. The quietest run counts.
func (b *bench) quietly(r *row) (best sample, err error) {
	for try := range 11 {
		s, err := b.once(r)
		if err != nil {
			return s, err
		}
		if try == 0 || s.noise() < best.noise() {
			best = s
		}
		if b.opts.quiet == 0 || best.noise() <= b.opts.quiet {
			break
		}
	}
	return best, nil
}

// once makes a file system, has the contender pull into it, and drops it.
func (b *bench) once(row *row) (s sample, err error) {
	if err := warm(row.src.store); err != nil {
		return s, err
	}
	fs, err := makeFS(b.ctx, filepath.Join(b.dir, "fs"), b.opts.fs, b.gib<<30)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, fs.drop()) }()
	r := &run{bench: b, source: row.src, dir: fs.dir, tag: tagLatest}
	defer r.endDaemons()
	if err := row.prepare(r); err != nil {
		return s, err
	}
	if row.src.recipe.update {
		if err := r.before(row.contender); err != nil {
			return s, err
		}
	}
	before, err := fs.used()
	if err != nil {
		return s, err
	}
	m, err := r.begin()
	if err != nil {
		return s, err
	}
	err = row.pull(r, m)
	s = m.end()
	if err != nil {
		return s, err
	}
	after, err := fs.used()
	if err != nil {
		return s, err
	}
	s.disk = after - before
	return s, r.compare(row)
}

// before pulls the image that is updated, and waits until the daemons have nothing more to do with it.
func (r *run) before(c contender) error {
	r.tag = tagBefore
	defer func() { r.tag = tagLatest }()
	m, err := r.begin()
	if err != nil {
		return err
	}
	err = c.pull(r, m)
	m.end()
	if err != nil {
		return err
	}
	spent := time.Duration(-1)
	for range 40 {
		var now time.Duration
		for _, d := range r.daemons {
			now += cpuOf(d.cmd.Process.Pid)
		}
		if now == spent {
			break
		}
		spent = now
		time.Sleep(250 * time.Millisecond)
	}
	return nil
}

// compare records whether a root filesystem differs from that of the first contender.
func (r *run) compare(row *row) error {
	dir, err := row.tree(r)
	if err != nil {
		return err
	}
	tree, err := treeOf(dir)
	if err != nil {
		return err
	}
	if r.tree == "" {
		r.tree = tree
	}
	if r.tree != tree {
		row.differs = true
		fmt.Fprintf(os.Stderr, "warning: the tree is another than the first contender's: %s, first %s\n", tree, r.tree)
	}
	return nil
}
