package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"sync"
)

// bbolt's own check runs in a goroutine of its own and reads through a memory map. A damaged page makes it fault there,
// which ends the process, because nobody else can recover in that goroutine. The check below reads the file instead and
// holds every offset against the bytes that it read, so that no content of the file can make it fault.

// The layout of bbolt's pages, in the byte order of the machine.
const (
	pageHeader  = 16 // id, flags, count, overflow
	elementSize = 16 // of a branch and of a leaf alike
	metaSize    = 64
	metaSum     = 56 // where a meta's checksum begins
	bucketSize  = 16 // root page, sequence; an inline page may follow

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	noFreelist = ^uint64(0)
)

const (
	maxPageBytes = 64 << 20 // of one page with its overflow: no record comes near it
	maxDepth     = 64       // of a tree: bbolt's branch pages have at least two children
	maxBuckets   = 1024
	maxPageFault = 100 // faults that are reported; one broken page can be the cause of many
)

var native = binary.NativeEndian

// pages walks the pages of a database file.
type pages struct {
	r        io.ReaderAt
	data     []byte // of a small file, all of it
	pageSize uint64
	high     uint64   // pages from this one on are not in use
	used     []bool   // pages that were reached; a page that is reached twice belongs to two trees
	free     []bool   // pages of the free list
	names    []string // of the buckets that were reached
	report   faultFunc
	faults   int

	// visit is called with each entry of each bucket, and sequence with each bucket's number. nil: no call.
	visit    func(bucket string, key, value []byte)
	sequence func(bucket string, n uint64)
	bucket   string // the one that is being walked
}

// checkPages reports every fault in the structure of the database file r, and the buckets that are missing. leaked adds
// the pages that are neither in use nor free: they cost space and harm nothing.
func checkPages(r io.ReaderAt, size int64, leaked bool, report faultFunc) error {
	p := &pages{r: r, report: report, names: make([]string, 0, len(buckets))}
	if err := p.check(size, leaked); err != nil || p.faults > 0 || !slices.Contains(p.names, string(bucketMeta)) {
		return err // without the first bucket it is another program's: verifySchema reports it
	}
	for _, name := range buckets {
		if !slices.Contains(p.names, string(name)) {
			p.fault("bucket %s is missing", name)
		}
	}
	return nil
}

// check walks all pages.
func (p *pages) check(size int64, leaked bool) error {
	p.load(size)
	if p.visit == nil { // nothing else has a part of data
		defer func() { smallFiles.Put(&p.data) }()
	}
	m, err := p.meta(size)
	if err != nil {
		return err
	}
	p.used, p.free = make([]bool, p.high), make([]bool, p.high)
	p.used[0], p.used[1] = true, true
	p.freelist(m.freelist)
	p.tree(m.root, nil, nil, 0)
	for id := range p.high {
		switch {
		case p.used[id] && p.free[id]:
			p.fault("page %d: in use and free", id)
		case leaked && m.freelist != noFreelist && !p.used[id] && !p.free[id]:
			p.fault("page %d: neither in use nor free", id)
		}
	}
	return nil
}

func (p *pages) fault(format string, args ...any) {
	if p.faults++; p.faults <= maxPageFault {
		p.report(format, args...)
	}
}

// boltMeta is a meta page, one of the first two pages: it refers to the root bucket and the free list.
type boltMeta struct {
	pageSize                   uint32
	root, freelist, high, txid uint64
}

// meta returns the meta that is in force: of the valid ones, that of the later transaction.
func (p *pages) meta(size int64) (best boltMeta, err error) {
	found := false
	for pageSize := int64(1 << 10); pageSize <= 1<<16; pageSize *= 2 {
		for _, offset := range []int64{0, pageSize} {
			if offset >= size {
				continue
			}
			m, ok := p.readMeta(offset)
			if ok && int64(m.pageSize) == pageSize && (!found || m.txid > best.txid) {
				best, found = m, true
			}
		}
	}
	if !found {
		return best, errors.New("no valid meta page")
	}
	p.pageSize, p.high = uint64(best.pageSize), best.high
	for id := range int64(2) { // the other meta page describes the state before the last transaction
		if _, ok := p.readMeta(id * int64(p.pageSize)); !ok {
			p.fault("page %d: no valid meta page", id)
		}
	}
	there := uint64(size) / p.pageSize
	if p.visit != nil && p.high > there { // a salvage reads what a truncated file still has
		p.fault("%d pages in %d bytes", p.high, size)
		p.high = there
	}
	if p.high < 3 || p.high > there {
		return best, fmt.Errorf("%d pages in %d bytes", p.high, size)
	}
	return best, nil
}

func (p *pages) readMeta(offset int64) (m boltMeta, ok bool) {
	b, err := p.bytes(uint64(offset), pageHeader+metaSize)
	if err != nil {
		return m, false
	}
	b = b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:metaSum])
	if native.Uint32(b) != boltMagic || native.Uint32(b[4:]) != boltVersion || native.Uint64(b[metaSum:]) != sum.Sum64() {
		return m, false
	}
	return boltMeta{
		pageSize: native.Uint32(b[8:]), root: native.Uint64(b[16:]), freelist: native.Uint64(b[32:]),
		high: native.Uint64(b[40:]), txid: native.Uint64(b[48:]),
	}, true
}

// smallFile is the size up to which a file is read at once: most databases are smaller, and one read for each page
// costs more.
const smallFile = 4 << 20

// smallFiles are buffers for such files, which are used again: a program may open roots often.
var smallFiles = sync.Pool{New: func() any { return new([]byte) }}

// load reads a small file at once.
func (p *pages) load(size int64) {
	if size > smallFile {
		return
	}
	data := slices.Grow((*smallFiles.Get().(*[]byte))[:0], int(size))[:size]
	if n, err := p.r.ReadAt(data, 0); err == nil && int64(n) == size {
		p.data = data
	}
}

// bytes returns n bytes of the file.
func (p *pages) bytes(offset, n uint64) ([]byte, error) {
	if end := offset + n; end <= uint64(len(p.data)) {
		return p.data[offset:end:end], nil
	}
	b := make([]byte, n)
	_, err := p.r.ReadAt(b, int64(offset))
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
func (p *pages) read(id uint64) (pg page, ok bool) {
	if id < 2 || id >= p.high {
		p.fault("page %d: outside of the file's %d pages", id, p.high)
		return pg, false
	}
	var err error
	if pg.bytes, err = p.bytes(id*p.pageSize, p.pageSize); err != nil {
		p.fault("page %d: %v", id, err)
		return pg, false
	}
	pg.id, pg.flags, pg.count = id, native.Uint16(pg.bytes[8:]), int(native.Uint16(pg.bytes[10:]))
	overflow := uint64(native.Uint32(pg.bytes[12:]))
	switch {
	case native.Uint64(pg.bytes) != id:
		p.fault("page %d: calls itself page %d", id, native.Uint64(pg.bytes))
		return pg, false
	case overflow >= p.high-id || (overflow+1)*p.pageSize > maxPageBytes:
		p.fault("page %d: continues over %d pages", id, overflow)
		return pg, false
	}
	for i := id; i <= id+overflow; i++ {
		if p.used[i] {
			p.fault("page %d: used twice", i)
			return pg, false
		}
		p.used[i] = true
	}
	if overflow > 0 {
		if pg.bytes, err = p.bytes(id*p.pageSize, (overflow+1)*p.pageSize); err != nil {
			p.fault("page %d: %v", id, err)
			return pg, false
		}
	}
	return pg, true
}

func (p *pages) freelist(id uint64) {
	if id == noFreelist {
		return
	}
	pg, ok := p.read(id)
	if !ok {
		return
	}
	ids := pg.bytes[pageHeader:]
	count := uint64(pg.count)
	if count == 0xFFFF { // more than the header has room for
		count, ids = native.Uint64(ids), ids[8:]
	}
	if pg.flags != freelistPage || count > uint64(len(ids)/8) {
		p.fault("page %d: no free list (flags %#x, %d pages)", id, pg.flags, count)
		return
	}
	for i := range count {
		switch id := native.Uint64(ids[8*i:]); {
		case id < 2 || id >= p.high:
			p.fault("page %d: free, and outside of the file's %d pages", id, p.high)
		case p.free[id]:
			p.fault("page %d: free twice", id)
		default:
			p.free[id] = true
		}
	}
}

// tree walks the tree that begins at a page. Its keys are at least low and less than high; nil is no bound.
func (p *pages) tree(id uint64, low, high []byte, depth int) {
	if depth > maxDepth {
		p.fault("page %d: below %d others", id, depth)
		return
	}
	pg, ok := p.read(id)
	switch {
	case !ok:
	case pg.flags == leafPage:
		p.leaf(pg, low, high, depth)
	case pg.flags == branchPage && pg.count > 0:
		p.branch(pg, low, high, depth)
	default:
		p.fault("page %d: neither branch nor leaf (flags %#x, %d elements)", id, pg.flags, pg.count)
	}
}

func (p *pages) branch(pg page, low, high []byte, depth int) {
	keys := make([][]byte, pg.count)
	for i := range keys {
		e, ok := p.element(pg, i)
		if !ok {
			return
		}
		// Position, size of the key, page.
		if keys[i], ok = p.within(pg, i, uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))); !ok {
			return
		}
	}
	if !p.ordered(pg, keys, low, high) {
		return
	}
	for i, key := range keys {
		next := high
		if i+1 < len(keys) {
			next = keys[i+1]
		}
		e, _ := p.element(pg, i)
		p.tree(native.Uint64(e[8:]), key, next, depth+1)
	}
}

// leaf also walks the buckets that are values of a leaf.
func (p *pages) leaf(pg page, low, high []byte, depth int) {
	keys := make([][]byte, pg.count)
	values := make([][]byte, pg.count)
	var buckets map[int]bool
	for i := range keys {
		e, ok := p.element(pg, i)
		if !ok {
			return
		}
		// Flags, position, size of the key, size of the value that follows the key.
		pos, keySize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:]))
		if keys[i], ok = p.within(pg, i, pos, keySize); !ok {
			return
		}
		value, ok := p.within(pg, i, pos+keySize, uint64(native.Uint32(e[12:])))
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
	if !p.ordered(pg, keys, low, high) {
		return
	}
	for i, value := range values {
		switch {
		case buckets[i]:
			p.walkBucket(pg.id, string(keys[i]), value, depth+1)
		case p.visit != nil && p.bucket != "":
			p.visit(p.bucket, keys[i], value)
		}
	}
}

// walkBucket walks the tree of a bucket: pages of its own, or one page inside the value. All of Tank's buckets lie in
// the file's root; refusing others keeps the time linear in the size of the file, whatever it contains.
func (p *pages) walkBucket(id uint64, name string, value []byte, depth int) {
	p.names = append(p.names, name)
	switch {
	case p.bucket != "" || len(p.names) > maxBuckets:
		p.fault("page %d: a bucket that is not Tank's", id)
		return
	case len(value) < bucketSize:
		p.fault("page %d: a bucket of %d bytes", id, len(value))
		return
	}
	p.bucket = name
	defer func() { p.bucket = "" }()
	if p.sequence != nil {
		p.sequence(name, native.Uint64(value[8:]))
	}
	if root := native.Uint64(value); root != 0 {
		p.tree(root, nil, nil, depth)
		return
	}
	inline := value[bucketSize:]
	if len(inline) < pageHeader || native.Uint16(inline[8:]) != leafPage || depth > maxDepth {
		p.fault("page %d: a bucket without a leaf", id)
		return
	}
	p.leaf(page{id: id, flags: leafPage, count: int(native.Uint16(inline[10:])), bytes: inline}, nil, nil, depth)
}

func (p *pages) element(pg page, i int) ([]byte, bool) {
	at := pageHeader + i*elementSize
	if at+elementSize > len(pg.bytes) {
		p.fault("page %d: %d elements in %d bytes", pg.id, pg.count, len(pg.bytes))
		return nil, false
	}
	return pg.bytes[at : at+elementSize], true
}

// within returns the bytes at a position that is relative to element i.
func (p *pages) within(pg page, i int, pos, size uint64) ([]byte, bool) {
	begin := uint64(pageHeader+i*elementSize) + pos
	if begin+size > uint64(len(pg.bytes)) {
		p.fault("page %d: element %d is outside of the page", pg.id, i)
		return nil, false
	}
	return pg.bytes[begin : begin+size], true
}

// ordered reports whether the keys ascend within the bounds.
func (p *pages) ordered(pg page, keys [][]byte, low, high []byte) bool {
	for i, key := range keys {
		if i == 0 && low != nil && bytes.Compare(key, low) < 0 || i > 0 && bytes.Compare(keys[i-1], key) >= 0 ||
			high != nil && bytes.Compare(key, high) >= 0 {
			p.fault("page %d: key %d is out of order", pg.id, i)
			return false
		}
	}
	return true
}
