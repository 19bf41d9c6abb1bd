package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/sparse"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/internal/nodes"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// The result of applying an ordered layer above a parent depends on the order of the entries in its tar
// (tarlayer.Result.Ordered). Therefore the directory of such a layer contains, beside fs and seal, a file order: the
// steps in the format of a seal, unsorted. An entry of the tar may remove a file that would stay above another parent.
// The contents of such files are in a directory aside.
const (
	orderName = "order"
	AsideName = "aside"
)

// Steps calls visit for each entry of a tar, in its order, and returns the first error. A step is valid until visit
// returns.
type Steps func(visit func(*tarlayer.Step) error) error

// WriteOrder writes the file order into the directory of a layer, and syncs the file.
func WriteOrder(dir string, res *tarlayer.Result) error {
	count := 0
	if err := res.Steps(func(*tarlayer.Step) error { count++; return nil }); err != nil {
		return err
	}
	return WriteSeal(filepath.Join(dir, orderName), nil, count, func(visit func(*entry.Entry) error) error {
		return res.Steps(func(s *tarlayer.Step) error {
			e := packStep(s)
			return visit(&e)
		})
	}, true)
}

// packStep stores a step in the fields of an entry: Inode is the path of the content, Implied means that this path is
// in aside, and Opaque of a device means that the device was omitted.
func packStep(s *tarlayer.Step) entry.Entry {
	e := s.Entry
	if e.Inode = s.Made; s.Aside != "" {
		e.Inode, e.Implied = s.Aside, true
	}
	e.Opaque = e.Opaque || s.Omitted
	return e
}

// unpackStep is the inverse of packStep.
func unpackStep(e *entry.Entry) tarlayer.Step {
	s := tarlayer.Step{Entry: *e}
	if s.Inode, s.Implied = "", false; e.Implied {
		s.Aside = e.Inode
	} else {
		s.Made = e.Inode
	}
	if e.Type == entry.Char || e.Type == entry.Block {
		s.Omitted, s.Opaque = e.Opaque, false
	}
	return s
}

// OpenOrder opens the steps of the ordered layer in dir. It returns the errors of OpenSeal.
func OpenOrder(ctx context.Context, dir string) (Steps, error) {
	sealed, err := OpenSeal(ctx, filepath.Join(dir, orderName))
	if err != nil {
		return nil, err
	}
	sealed.unsorted = true
	return func(visit func(*tarlayer.Step) error) error {
		return sealed.Each(func(e *entry.Entry) error {
			s := unpackStep(e)
			return visit(&s)
		})
	}, nil
}

// CheckOrder verifies the steps of the ordered layer in dir and the contents that were set aside. It returns an error
// of class errdefs.ErrDataLoss that names the first difference.
func CheckOrder(ctx context.Context, dir string) error {
	steps, err := OpenOrder(ctx, dir)
	if err != nil {
		return err
	}
	aside, err := nodes.OpenTree(filepath.Join(dir, AsideName))
	switch {
	case err == nil:
		defer aside.Close()
	case !errors.Is(err, os.ErrNotExist):
		return lost(AsideName, err)
	}
	return steps(func(st *tarlayer.Step) error {
		if err := ctx.Err(); err != nil || st.Aside == "" || st.Type != entry.File {
			return err
		}
		if aside == nil {
			return fmt.Errorf("%s: missing: %w", AsideName, ErrDiffers)
		}
		return checkAside(ctx, aside, st)
	})
}

// checkAside compares a file that was set aside with its step.
func checkAside(ctx context.Context, aside *os.File, st *tarlayer.Step) error {
	f, err := nodes.OpenFileBelow(aside, st.Aside)
	if err != nil {
		return lost(AsideName+"/"+st.Aside, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	hash, err := sparse.Sum128(ctx, int(f.Fd()), info.Size())
	if err != nil {
		return err
	}
	if info.Size() != st.Size || hash != st.Hash {
		return fmt.Errorf("%s/%s: content: %w", AsideName, st.Aside, ErrDiffers)
	}
	return nil
}

// lost adds a name to an error, and the class errdefs.ErrDataLoss if the error means that the file is missing or is of
// another type.
func lost(name string, err error) error {
	if nodes.Gone(err) || errors.Is(err, nodes.ErrReplaced) {
		return fmt.Errorf("%s: %w: %w", name, err, ErrDiffers)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// StepsOf returns the steps of a layer that is not ordered: its entries in the order of their positions in the tar.
// Steps keeps them all in memory; it calls grow with the bytes that each step takes.
func StepsOf(entries List, grow func(bytes int64) error) Steps {
	return func(visit func(*tarlayer.Step) error) error {
		var all []tarlayer.Step
		err := entries(func(e *entry.Entry) error {
			s := tarlayer.Step{Entry: *e}
			s.Opaque = false
			switch {
			case e.Opaque && e.Type == entry.Whiteout: // a device in the tar that is a whiteout on disk
				s.Type, s.Omitted = entry.Char, true
			case e.Opaque: // the layer was unpacked by a version that wrote no orders
				marker := entry.Entry{Path: e.Path, Type: entry.Whiteout, Opaque: true}
				all = append(all, tarlayer.Step{Entry: marker})
			}
			switch {
			case e.Seq == 0:
				return nil
			case e.Type != entry.Dir && e.Type != entry.Link && e.Type != entry.Whiteout:
				if s.Made = e.Inode; s.Made == "" {
					s.Made = e.Path
				}
			}
			all = append(all, s)
			return grow(NodeMemory + int64(len(e.Path)+len(e.Inode)+len(e.Target)))
		})
		if err != nil {
			return err
		}
		slices.SortStableFunc(all, func(a, b tarlayer.Step) int { return a.Seq - b.Seq })
		for i := range all {
			if err := visit(&all[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// ErrDiffers means that a directory differs from its seal. It is of class errdefs.ErrDataLoss.
var ErrDiffers = fmt.Errorf("directory differs from its seal: %w", errdefs.ErrDataLoss)
