package dirwriter

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/panics"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// To create a small file, to fill it, to set its attributes and to close it costs more than its content. The file is
// created when its entry is read, since the order of entries decides what is at a path. The rest is done in batches,
// by another goroutine if one is idle, while the tar is read on. (If those goroutines created files as well, they
// would wait for each other, because creating a file locks its directory.)
const (
	// maxSmall is the size in bytes of the largest file that is gathered.
	maxSmall = 64 << 10
	// batchBytes and batchFiles bound a batch. It is so large that the cost of handing it over, which wakes another
	// core, is small beside it.
	batchBytes = 256 << 10
	batchFiles = 32
	// maxFillers is how many goroutines fill files for one Writer.
	maxFillers = 4
	// enoughDescriptors is how many descriptors a Writer opens at most.
	enoughDescriptors = 200
)

// smallFile is a file that was created and is still to be filled.
type smallFile struct {
	name    string // the entry's
	fd      int
	mode    uint32          // that it was created with
	ino     *tarlayer.Inode // gets the hash, and what the file system makes of the attributes
	content []byte          // in the batch's buf
}

// batch is a number of small files.
type batch struct {
	files []smallFile
	used  int // bytes of buf
	buf   [batchBytes]byte
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// close closes the files that were not filled and returns the batch to the pool.
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

// gatherer gathers small files and has them filled.
type gatherer struct {
	fill    func(*smallFile) error // fills and closes a file; several goroutines call it
	limit   int                    // how many files may be open; 0: batchFiles of each goroutine
	current *batch
	count   uint32 // files so far; the ticket of the latest file's inode
	filled  uint32 // the tickets that were filled when await returned last

	fillers int
	jobs    chan *batch // unbuffered: if no filler is idle, the gathering goroutine fills the batch itself
	pending sync.WaitGroup
	running sync.WaitGroup

	mu  sync.Mutex // guards err
	err error      // the first one
}

// add gathers a file and reads its content. It takes over the descriptor, also if it returns an error.
func (g *gatherer) add(f smallFile, content *tarlayer.Content) error {
	if b := g.current; b != nil && (len(b.files) == g.maxFiles() || int64(b.used)+f.ino.Size > batchBytes) {
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
	f.ino.Ticket = g.count
	return content.ReadAll(f.content)
}

// maxFiles returns how many files a batch has at most.
func (g *gatherer) maxFiles() int {
	if g.limit > 0 {
		return min(g.limit, batchFiles)
	}
	return batchFiles
}

// maxFillers returns how many goroutines may fill files: none if descriptors are scarce.
func (g *gatherer) maxFillers() int {
	if g.limit > 0 {
		return 0
	}
	return min(runtime.GOMAXPROCS(0)-1, maxFillers)
}

// flush hands the current batch to a filler, or fills it if none is idle. It returns the first error of any batch.
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
				g.fillBatch(b)
				for b := range g.jobs {
					g.fillBatch(b)
				}
			})
		} else {
			g.fillBatch(b)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// fillBatch fills the files of a batch until one fails.
func (g *gatherer) fillBatch(b *batch) {
	defer g.pending.Done()
	defer b.close()
	err := panics.Call("fill files of a layer", func() error {
		for i := range b.files {
			if err := g.fill(&b.files[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

// await returns when all files are filled, with the first error. After that nothing changes their inodes.
func (g *gatherer) await() error {
	if g.filled == g.count {
		return nil
	}
	_ = g.flush()
	g.pending.Wait()
	g.filled = g.count
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// awaitOne is await if the file of this inode may still have to be filled.
func (g *gatherer) awaitOne(ino *tarlayer.Inode) error {
	if ino.Ticket <= g.filled {
		return nil
	}
	return g.await()
}

// close waits for the fillers and ends them.
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

// fillSmall fills a gathered file. Several goroutines call it.
func (w *Writer) fillSmall(f *smallFile) error {
	f.ino.Hash = tarlayer.Hash(f.content)
	fd := f.fd
	f.fd = -1
	return w.complete(f.name, fd, f.ino, f.mode, write(f.name, fd, f.content))
}
