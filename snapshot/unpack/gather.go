package unpack

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
)

// To create a small file, to fill it, to give it its attributes and to close it costs more than what it holds. It is created when its
// entry is read, since the order of entries decides what is at a path. The rest is done by the batch, by another goroutine if one is
// idle, while the tar is read on. (If they created files as well, they would wait for each other: a directory is locked meanwhile.)
const (
	// maxSmall is the size in bytes of the largest file that is gathered.
	maxSmall = 64 << 10
	// batchBytes and batchFiles bound a batch: large enough that handing it over, which wakes another core, costs nothing beside it.
	batchBytes = 256 << 10
	batchFiles = 32
	// maxFillers is how many goroutines fill files for one that reads a tar.
	maxFillers = 4
	// enoughDescriptors are as many as an extraction opens at most.
	enoughDescriptors = 200
)

// smallFile is a file that was created, and is still to be filled.
type smallFile struct {
	name    string // the entry's
	fd      int
	mode    uint32 // that it was created with
	ino     *inode // gets the hash, and what the filesystem makes of the attributes
	content []byte // in the batch's buf
}

// batch is some small files.
type batch struct {
	files []smallFile
	used  int // of buf
	buf   [batchBytes]byte
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// close forgets the files, and closes those that were not filled.
func (b *batch) close() {
	for i := range b.files {
		if b.files[i].fd >= 0 {
			unix.Close(b.files[i].fd)
		}
	}
	clear(b.files)
	b.files, b.used = b.files[:0], 0
	batches.Put(b)
}

// gatherer gathers small files, and has them filled.
type gatherer struct {
	fill    func(*smallFile) error // fills and closes one
	few     int                    // how many files may be open; 0: as many as are worth it
	current *batch
	count   uint32 // of files so far
	filled  uint32 // of these, as of the last await

	fillers int
	jobs    chan *batch // without room: what nobody is idle for is done by who gathers
	pending sync.WaitGroup
	running sync.WaitGroup

	mu       sync.Mutex // guards what follows
	err      error      // the first one
	panicked string     // what, and where
}

// add gathers a file, whose content it reads. It closes the file in the end, also after an error.
func (g *gatherer) add(f smallFile, body io.Reader, src *stream.Source) error {
	if b := g.current; b != nil && (len(b.files) == g.batchFiles() || int64(b.used)+f.ino.Size > batchBytes) {
		if err := g.flush(); err != nil {
			unix.Close(f.fd)
			return err
		}
	}
	if g.current == nil {
		g.current = batches.Get().(*batch)
	}
	b := g.current
	f.content = b.buf[b.used:][:f.ino.Size]
	b.used += len(f.content)
	b.files = append(b.files, f)
	g.count++
	f.ino.gathered = g.count
	if err := readFull(body, f.content); err != nil {
		return src.Blame(entryOf(f.name), err)
	}
	return nil
}

// batchFiles is how many files a batch has at most.
func (g *gatherer) batchFiles() int {
	if g.few > 0 {
		return min(g.few, batchFiles)
	}
	return batchFiles
}

// maxFillers is how many goroutines fill files: none when there are few descriptors.
func (g *gatherer) maxFillers() int {
	if g.few > 0 {
		return 0
	}
	return min(runtime.GOMAXPROCS(0)-1, maxFillers)
}

// flush hands the batch over, or fills it if nobody is idle. It returns the first error of any.
func (g *gatherer) flush() error {
	b := g.current
	if b == nil {
		return nil
	}
	g.current = nil
	g.pending.Add(1)
	if g.jobs == nil {
		g.jobs = make(chan *batch)
	}
	select {
	case g.jobs <- b:
	default:
		if g.fillers < g.maxFillers() {
			g.fillers++
			g.running.Go(func() {
				g.fillAll(b)
				for b := range g.jobs {
					g.fillAll(b)
				}
			})
		} else {
			g.fillAll(b)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// fillAll fills the files of a batch, until one fails.
func (g *gatherer) fillAll(b *batch) {
	defer g.pending.Done()
	defer b.close()
	defer func() {
		if p := recover(); p != nil { // which is the extraction's, wherever it came up
			g.mu.Lock()
			defer g.mu.Unlock()
			g.panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
	}()
	for i := range b.files {
		if err := g.fill(&b.files[i]); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.err == nil {
				g.err = err
			}
			return
		}
	}
}

// await returns when all files are filled, with the first error. Nobody uses their inodes any more.
func (g *gatherer) await() error {
	if g.filled == g.count {
		return nil
	}
	_ = g.flush()
	g.pending.Wait()
	g.filled = g.count
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.panicked != "" {
		panic(g.panicked)
	}
	return g.err
}

// awaitOne is await if this inode may not be filled yet.
func (g *gatherer) awaitOne(ino *inode) error {
	if ino.gathered <= g.filled {
		return nil
	}
	return g.await()
}

// close ends the goroutines, when they have filled what they have.
func (g *gatherer) close() {
	if g.current != nil {
		g.current.close()
		g.current = nil
	}
	if g.jobs != nil {
		close(g.jobs)
	}
	g.running.Wait()
}

// onFill is for tests.
var onFill = func(entry string) {}

// fillSmall is called by several goroutines at once.
func (x *extractor) fillSmall(f *smallFile) error {
	onFill(f.name)
	f.ino.Hash = xxh3.Hash128(f.content).Bytes()
	fd := f.fd
	f.fd = -1
	return x.complete(f.name, fd, f.ino, f.mode, x.write(f.name, fd, f.content, -1))
}
