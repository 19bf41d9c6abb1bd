// Package boltfile reads the pages of a bbolt file without bbolt.
//
// It owns nothing on disk: it reads a file that no process writes meanwhile, and changes no byte of it.
//
// Its invariant: no content of the file makes it fault, loop or use unbounded memory. Every offset is compared with the
// bytes that were read, and the time is linear in the size of the file.
//
// The surprising rule: it exists because bbolt's own check runs in a goroutine of its own and reads through a memory
// map. A damaged page makes that goroutine fault. No other goroutine can recover from that, so the process ends.
package boltfile

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"sync"
)

// The layout of bbolt's pages, in the byte order of the machine.
const (
	PageHeader  = 16 // id, flags, count, overflow
	ElementSize = 16 // of a branch and of a leaf alike
	metaSize    = 64
	metaSum     = 56 // where the checksum of a meta begins
	bucketSize  = 16 // root page, sequence; an inline page may follow

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	noFreelist = ^uint64(0)
)

const (
	maxPageBytes = 64 << 20 // of one page with its overflow; records are far smaller
	maxDepth     = 64       // of a tree: bbolt's branch pages have at least two children
	maxBuckets   = 1024
	maxFaults    = 100 // faults that are reported; one broken page can be the cause of many
)

var native = binary.NativeEndian

// Report is called with each fault of a file, as fmt.Sprintf would format it.
type Report func(format string, args ...any)

// Visitor receives what an intact part of a file holds.
type Visitor struct {
	// Entry is called with each entry of each bucket. key and value are valid during the call only.
	Entry func(bucket string, key, value []byte)
	// Sequence is called with the sequence number of each bucket.
	Sequence func(bucket string, n uint64)
	// Fault is called with the bucket in which a fault is; "" for one outside of all buckets. nil: not called.
	Fault func(bucket string)
}

// walk is one reading of a file.
type walk struct {
	r        io.ReaderAt
	data     []byte // of a small file, all of it
	pageSize uint64
	high     uint64   // pages from this one on are not in use
	used     []bool   // pages that were reached; a page that is reached twice belongs to two trees
	free     []bool   // pages of the free list
	names    []string // of the buckets that were reached
	report   Report
	faults   int
	visitor  *Visitor // nil: the file is only checked
	bucket   string   // the one that is being walked
}

// Check reports every fault in the structure of the file r of size bytes. If leaked is true, it also reports the pages
// that are neither in use nor free, which cost space and harm nothing. Check reports each bucket of want that is
// missing, but not if there are other faults, and not if the first of want is missing: then the file is another
// program's. It returns an error for a file without a valid meta page.
func Check(r io.ReaderAt, size int64, leaked bool, want [][]byte, report Report) error {
	w := &walk{r: r, report: report, names: make([]string, 0, len(want))}
	if err := w.run(size, leaked); err != nil || w.faults > 0 || !slices.Contains(w.names, string(want[0])) {
		return err
	}
	for _, name := range want {
		if !slices.Contains(w.names, string(name)) {
			w.fault("bucket %s is missing", name)
		}
	}
	return nil
}

// Verify returns the first fault of a file and the number of the others, or nil if it has none. See Check.
func Verify(r io.ReaderAt, size int64, want [][]byte) error {
	var first error
	faults := 0
	err := Check(r, size, false, want, func(format string, args ...any) {
		if faults++; faults == 1 {
			first = fmt.Errorf(format, args...)
		}
	})
	if faults > 1 {
		first = fmt.Errorf("%w, and %d more faults", first, faults-1)
	}
	return cmp.Or(err, first)
}

// Salvage calls visitor with all that can be read of the file r of size bytes, and reports every fault. Of a damaged
// page, only its own entries are lost. Of a truncated file, Salvage reads the part that is left. It returns an error
// for a file without a valid meta page.
func Salvage(r io.ReaderAt, size int64, visitor Visitor, report Report) error {
	return (&walk{r: r, report: report, visitor: &visitor}).run(size, false)
}

// run walks all pages.
func (w *walk) run(size int64, leaked bool) error {
	w.load(size)
	if w.visitor == nil { // no visitor kept a part of data
		defer func() { smallBuffers.Put(&w.data) }()
	}
	m, err := w.meta(size)
	if err != nil {
		return err
	}
	w.used, w.free = make([]bool, w.high), make([]bool, w.high)
	w.used[0], w.used[1] = true, true
	w.freelist(m.freelist)
	w.tree(m.root, nil, nil, 0)
	for id := range w.high {
		switch {
		case w.used[id] && w.free[id]:
			w.fault("page %d: in use and free", id)
		case leaked && m.freelist != noFreelist && !w.used[id] && !w.free[id]:
			w.fault("page %d: neither in use nor free", id)
		}
	}
	return nil
}

func (w *walk) fault(format string, args ...any) {
	if w.faults++; w.faults <= maxFaults {
		w.report(format, args...)
	}
	if w.visitor != nil && w.visitor.Fault != nil {
		w.visitor.Fault(w.bucket)
	}
}

// boltMeta is a meta page, one of the first two pages: it refers to the root bucket and the free list.
type boltMeta struct {
	pageSize                   uint32
	root, freelist, high, txid uint64
}

// meta returns the meta that is in force: of the valid ones, that of the later transaction.
func (w *walk) meta(size int64) (best boltMeta, err error) {
	found := false
	for pageSize := int64(1 << 10); pageSize <= 1<<16; pageSize *= 2 {
		for _, offset := range []int64{0, pageSize} {
			if offset >= size {
				continue
			}
			m, ok := w.readMeta(offset)
			if ok && int64(m.pageSize) == pageSize && (!found || m.txid > best.txid) {
				best, found = m, true
			}
		}
	}
	if !found {
		return best, errors.New("no valid meta page")
	}
	w.pageSize, w.high = uint64(best.pageSize), best.high
	for id := range int64(2) { // the other meta page describes the state before the last transaction
		if _, ok := w.readMeta(id * int64(w.pageSize)); !ok {
			w.fault("page %d: no valid meta page", id)
		}
	}
	there := uint64(size) / w.pageSize
	if w.visitor != nil && w.high > there { // a salvage reads what a truncated file still has
		w.fault("%d pages in %d bytes", w.high, size)
		w.high = there
	}
	if w.high < 3 || w.high > there {
		return best, fmt.Errorf("%d pages in %d bytes", w.high, size)
	}
	return best, nil
}

func (w *walk) readMeta(offset int64) (m boltMeta, ok bool) {
	b, err := w.bytes(uint64(offset), PageHeader+metaSize)
	if err != nil {
		return m, false
	}
	b = b[PageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:metaSum])
	if native.Uint32(b) != boltMagic || native.Uint32(b[4:]) != boltVersion ||
		native.Uint64(b[metaSum:]) != sum.Sum64() {
		return m, false
	}
	return boltMeta{
		pageSize: native.Uint32(b[8:]), root: native.Uint64(b[16:]), freelist: native.Uint64(b[32:]),
		high: native.Uint64(b[40:]), txid: native.Uint64(b[48:]),
	}, true
}

// maxSmallFile is the size in bytes up to which a file is read at once. Most databases are smaller, and a read for each
// page costs more.
const maxSmallFile = 4 << 20

// smallBuffers has buffers for such files, because a program may open roots often.
var smallBuffers = sync.Pool{New: func() any { return new([]byte) }}

// load reads a small file at once.
func (w *walk) load(size int64) {
	if size > maxSmallFile {
		return
	}
	data := slices.Grow((*smallBuffers.Get().(*[]byte))[:0], int(size))[:size]
	if n, err := w.r.ReadAt(data, 0); err == nil && int64(n) == size {
		w.data = data
	}
}

// bytes returns n bytes of the file.
func (w *walk) bytes(offset, n uint64) ([]byte, error) {
	if end := offset + n; end <= uint64(len(w.data)) {
		return w.data[offset:end:end], nil
	}
	b := make([]byte, n)
	_, err := w.r.ReadAt(b, int64(offset))
	return b, err
}

// page is one page with its overflow.
type page struct {
	id    uint64
	flags uint16
	count int
	bytes []byte
}

// read reads a page for the one place that refers to it. ok is false after a fault.
func (w *walk) read(id uint64) (pg page, ok bool) {
	if id < 2 || id >= w.high {
		w.fault("page %d: outside of the file's %d pages", id, w.high)
		return pg, false
	}
	var err error
	if pg.bytes, err = w.bytes(id*w.pageSize, w.pageSize); err != nil {
		w.fault("page %d: %v", id, err)
		return pg, false
	}
	pg.id, pg.flags, pg.count = id, native.Uint16(pg.bytes[8:]), int(native.Uint16(pg.bytes[10:]))
	overflow := uint64(native.Uint32(pg.bytes[12:]))
	switch {
	case native.Uint64(pg.bytes) != id:
		w.fault("page %d: calls itself page %d", id, native.Uint64(pg.bytes))
		return pg, false
	case overflow >= w.high-id || (overflow+1)*w.pageSize > maxPageBytes:
		w.fault("page %d: continues over %d pages", id, overflow)
		return pg, false
	}
	for i := id; i <= id+overflow; i++ {
		if w.used[i] {
			w.fault("page %d: used twice", i)
			return pg, false
		}
		w.used[i] = true
	}
	if overflow > 0 {
		if pg.bytes, err = w.bytes(id*w.pageSize, (overflow+1)*w.pageSize); err != nil {
			w.fault("page %d: %v", id, err)
			return pg, false
		}
	}
	return pg, true
}

func (w *walk) freelist(id uint64) {
	if id == noFreelist {
		return
	}
	pg, ok := w.read(id)
	if !ok {
		return
	}
	ids := pg.bytes[PageHeader:]
	count := uint64(pg.count)
	if count == 0xFFFF { // more than the header has room for
		count, ids = native.Uint64(ids), ids[8:]
	}
	if pg.flags != freelistPage || count > uint64(len(ids)/8) {
		w.fault("page %d: no free list (flags %#x, %d pages)", id, pg.flags, count)
		return
	}
	for i := range count {
		switch id := native.Uint64(ids[8*i:]); {
		case id < 2 || id >= w.high:
			w.fault("page %d: free, and outside of the file's %d pages", id, w.high)
		case w.free[id]:
			w.fault("page %d: free twice", id)
		default:
			w.free[id] = true
		}
	}
}

// tree walks the tree that begins at a page. Its keys begin with low and are less than high; nil is no bound.
func (w *walk) tree(id uint64, low, high []byte, depth int) {
	if depth > maxDepth {
		w.fault("page %d: below %d others", id, depth)
		return
	}
	pg, ok := w.read(id)
	switch {
	case !ok:
	case pg.flags == leafPage:
		w.leaf(pg, low, high, depth)
	case pg.flags == branchPage && pg.count > 0:
		w.branch(pg, low, high, depth)
	default:
		w.fault("page %d: neither branch nor leaf (flags %#x, %d elements)", id, pg.flags, pg.count)
	}
}

func (w *walk) branch(pg page, low, high []byte, depth int) {
	keys := make([][]byte, pg.count)
	for i := range keys {
		e, ok := w.element(pg, i)
		if !ok {
			return
		}
		// Position, size of the key, page.
		if keys[i], ok = w.within(pg, i, uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))); !ok {
			return
		}
	}
	if !w.ordered(pg, keys, low, high) {
		return
	}
	for i, key := range keys {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		e, _ := w.element(pg, i)
		w.tree(native.Uint64(e[8:]), key, next, depth+1)
	}
}

// leaf visits the entries of a leaf page, and walks the buckets that are values in it.
func (w *walk) leaf(pg page, low, high []byte, depth int) {
	keys := make([][]byte, pg.count)
	values := make([][]byte, pg.count)
	var buckets map[int]bool
	for i := range keys {
		e, ok := w.element(pg, i)
		if !ok {
			return
		}
		// Flags, position, size of the key, size of the value that follows the key.
		pos, keySize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:]))
		if keys[i], ok = w.within(pg, i, pos, keySize); !ok {
			return
		}
		value, ok := w.within(pg, i, pos+keySize, uint64(native.Uint32(e[12:])))
		if !ok {
			return
		}
		values[i] = value
		if native.Uint32(e)&1 != 0 {
			if buckets == nil {
				buckets = map[int]bool{}
			}
			buckets[i] = true
		}
	}
	if !w.ordered(pg, keys, low, high) {
		return
	}
	for i, value := range values {
		switch {
		case buckets[i]:
			w.walkBucket(pg.id, string(keys[i]), value, depth+1)
		case w.visitor != nil && w.bucket != "":
			w.visitor.Entry(w.bucket, keys[i], value)
		}
	}
}

// walkBucket walks the tree of a bucket: pages of its own, or one page inside the value. All of Tank's buckets lie in
// the file's root; refusing others keeps the time linear in the size of the file, whatever it contains.
func (w *walk) walkBucket(id uint64, name string, value []byte, depth int) {
	w.names = append(w.names, name)
	switch {
	case w.bucket != "" || len(w.names) > maxBuckets:
		w.fault("page %d: a bucket that is not Tank's", id)
		return
	case len(value) < bucketSize:
		w.fault("page %d: a bucket of %d bytes", id, len(value))
		return
	}
	w.bucket = name
	defer func() { w.bucket = "" }()
	if w.visitor != nil {
		w.visitor.Sequence(name, native.Uint64(value[8:]))
	}
	if root := native.Uint64(value); root != 0 {
		w.tree(root, nil, nil, depth)
		return
	}
	inline := value[bucketSize:]
	if len(inline) < PageHeader || native.Uint16(inline[8:]) != leafPage || depth > maxDepth {
		w.fault("page %d: a bucket without a leaf", id)
		return
	}
	w.leaf(page{id: id, flags: leafPage, count: int(native.Uint16(inline[10:])), bytes: inline}, nil, nil, depth)
}

func (w *walk) element(pg page, i int) ([]byte, bool) {
	at := PageHeader + i*ElementSize
	if at+ElementSize > len(pg.bytes) {
		w.fault("page %d: %d elements in %d bytes", pg.id, pg.count, len(pg.bytes))
		return nil, false
	}
	return pg.bytes[at : at+ElementSize], true
}

// within returns the bytes at a position that is relative to element i.
func (w *walk) within(pg page, i int, pos, size uint64) ([]byte, bool) {
	begin := uint64(PageHeader+i*ElementSize) + pos
	if begin+size > uint64(len(pg.bytes)) {
		w.fault("page %d: element %d is outside of the page", pg.id, i)
		return nil, false
	}
	return pg.bytes[begin : begin+size], true
}

// ordered reports whether the keys ascend, begin with low and are less than high. bbolt finds the element of a branch
// by the first key of the page below: with another key it would add an element, and free that page twice.
func (w *walk) ordered(pg page, keys [][]byte, low, high []byte) bool {
	for i, key := range keys {
		if i == 0 && low != nil && !bytes.Equal(key, low) ||
			i > 0 && bytes.Compare(keys[i-1], key) >= 0 ||
			high != nil && bytes.Compare(key, high) >= 0 {
			w.fault("page %d: key %d is out of order", pg.id, i)
			return false
		}
	}
	return true
}
