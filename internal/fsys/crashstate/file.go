package crashstate

import (
	"fmt"
	"io/fs"
	"os"
)

// file is an open file of a Recorder.
type file struct {
	f       *os.File // not embedded: its ReadFrom would write without being recorded
	r       *Recorder
	inode   *inode
	appends bool  // Write writes at the end
	offset  int64 // of Write; guarded by the Recorder's mu
}

// Write implements io.Writer.
func (f *file) Write(p []byte) (n int, err error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.appends {
		f.offset = int64(len(f.inode.data))
	}
	n, err = f.f.Write(p)
	f.wrote(f.offset, p[:n])
	f.offset += int64(n)
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	n, err = f.f.WriteAt(p, off)
	f.wrote(off, p[:n])
	return n, err
}

func (f *file) wrote(off int64, p []byte) {
	if len(p) > 0 {
		at := f.r.step(fmt.Sprintf("write %s %d+%d", f.r.rel(f.Name()), off, len(p)))
		e := &effect{from: at, to: at, inode: f.inode, off: off, data: append([]byte(nil), p...), size: -1}
		f.r.add(e)
		f.inode.data = e.apply(f.inode.data)
	}
}

// Truncate implements fsys.File.
func (f *file) Truncate(size int64) error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := f.f.Truncate(size); err != nil {
		return err
	}
	at := f.r.step(fmt.Sprintf("truncate %s %d", f.r.rel(f.Name()), size))
	e := &effect{from: at, to: at, inode: f.inode, size: size}
	f.r.add(e)
	f.inode.data = e.apply(f.inode.data)
	return nil
}

// Chmod implements fsys.File.
func (f *file) Chmod(mode fs.FileMode) error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if err := f.f.Chmod(mode); err != nil {
		return err
	}
	at := f.r.step(fmt.Sprintf("chmod %s %04o", f.r.rel(f.Name()), mode))
	a := *f.inode.attrs
	a.mode = uint32(mode.Perm())
	f.inode.attrs = &a
	f.r.add(&effect{from: at, to: at, inode: f.inode, attrs: &a})
	return nil
}

// Sync implements fsys.File.
func (f *file) Sync() error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	at := f.r.step("sync " + f.r.rel(f.Name()))
	f.r.force(at, func(e *effect) bool { return e.inode == f.inode })
	return nil
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) { return f.f.Read(p) }

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Close implements io.Closer.
func (f *file) Close() error { return f.f.Close() }

// Name implements fsys.File.
func (f *file) Name() string { return f.f.Name() }

// Fd implements fsys.File.
func (f *file) Fd() uintptr { return f.f.Fd() }

// Stat implements fsys.File.
func (f *file) Stat() (fs.FileInfo, error) { return f.f.Stat() }
