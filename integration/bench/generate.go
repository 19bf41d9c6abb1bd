package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	meanLog, sigmaLog           = 8.7, 1.9 // of file sizes: the median is 6 KB, the mean 36 KB
	smallMeanLog, smallSigmaLog = 6.4, 1.0 // of small files: 600 bytes, 1 KB
	maxFile                     = 32 << 20
	textShare                   = 0.50 // of the bytes
	noiseShare                  = 0.07 // what is compressed already: images, archives
)

// generated is a layer that was written.
type generated struct {
	ocispec.Descriptor
	diffID  digest.Digest
	size    int64 // of the tar
	entries int
}

// layer writes one layer.
type layer struct {
	index   int
	small   bool // its files
	rng     *rand.Rand
	tw      *tar.Writer
	dirs    map[string]bool
	entries int
	buf     []byte
	prev    *tar.Header // the last regular file
}

// counter hashes and counts what goes through it.
type counter struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.hash.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) digest() digest.Digest { return digest.NewDigest(digest.SHA256, c.hash) }

// generateLayer writes a gzip layer of a recipe's image into blobs. Same arguments, same bytes, as long
// as compress/gzip stays the same. Another version has files of the same names.
func generateLayer(blobs string, r recipe, index, version int) (g generated, err error) {
	f, err := os.CreateTemp(blobs, "layer")
	if err != nil {
		return g, err
	}
	defer f.Close()
	out := &counter{w: f, hash: sha256.New()}
	z := gzip.NewWriter(out)
	in := &counter{w: z, hash: sha256.New()}
	l := &layer{
		index: index, small: r.entries > 0, rng: rand.New(rand.NewPCG(20+uint64(version), uint64(index))),
		tw: tar.NewWriter(in), dirs: map[string]bool{},
	}
	share := r.share(index)
	enough := func() bool {
		switch {
		case r.unpacked > 0:
			return float64(in.n) >= share*float64(r.unpacked)*1e6
		case r.entries > 0:
			return float64(l.entries) >= share*float64(r.entries)
		}
		return float64(out.n) >= share*float64(r.compressed)*1e6
	}
	if err := l.changes(); err != nil {
		return g, err
	}
	for n := 0; n < changed || !enough(); n++ {
		if err := l.file(n); err != nil {
			return g, err
		}
	}
	if err := l.tw.Close(); err != nil {
		return g, err
	}
	if err := z.Close(); err != nil {
		return g, err
	}
	g = generated{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: out.digest(), Size: out.n},
		diffID:     in.digest(), size: in.n, entries: l.entries,
	}
	return g, os.Rename(f.Name(), filepath.Join(blobs, g.Digest.Encoded()))
}

// changed is how many files each layer replaces or deletes in the one below, and the fewest it has. A
// whiteout of nothing would show in the listing of an overlay.
const changed = 10

// changes replaces and deletes some files of the layer below, if there is one.
func (l *layer) changes() error {
	if l.index == 0 {
		return nil
	}
	for n := range changed {
		name := place(l.index-1, n)
		if n%2 == 1 {
			dir, base := path.Split(name)
			if err := l.add(&tar.Header{Name: dir + ".wh." + base, Typeflag: tar.TypeReg, Mode: 0o644},
				nil); err != nil {
				return err
			}
			continue
		}
		if err := l.add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, l.text(5000)); err != nil {
			return err
		}
	}
	return nil
}

// place names the nth file of a layer: a few files to a directory, a few levels deep.
func place(index, n int) string {
	top := []string{"usr/lib", "usr/share", "opt/app", "usr/lib/python3/dist-packages"}[n/100%4]
	return fmt.Sprintf("%s/part%d/group%02d/module%03d/file%05d.dat", top, index, n/400%50, n/13, n)
}

// file writes the nth file: mostly regular, some of them executable or somebody else's, and a few links.
func (l *layer) file(n int) error {
	name := place(l.index, n)
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}
	switch {
	case n%23 == 22:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, path.Base(place(l.index, n-1)), 0o777
		return l.add(h, nil)
	case n%101 == 100 && l.prev != nil:
		h = &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: l.prev.Name, Mode: l.prev.Mode,
			ModTime: l.prev.ModTime,
			Uid:     l.prev.Uid, Gid: l.prev.Gid}
		return l.add(h, nil)
	case n%211 == 1:
		// cap_net_raw=ep, as ping has it
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00" +
			strings.Repeat("\x00", 12)}
		h.Mode = 0o755
	case n%7 == 3:
		h.Mode = 0o755
	case n%17 == 5:
		h.Uid, h.Gid = 1000, 1000
	}
	mean, sigma := meanLog, sigmaLog
	if l.small {
		mean, sigma = smallMeanLog, smallSigmaLog
	}
	size := min(int(math.Exp(l.rng.NormFloat64()*sigma+mean)), maxFile)
	switch kind := l.rng.Float64(); {
	case kind < textShare:
		return l.add(h, l.text(size))
	case kind < textShare+noiseShare:
		return l.add(h, l.noise(size))
	}
	return l.add(h, l.binary(size))
}

// add writes an entry, after the directories above it that were not written before.
func (l *layer) add(h *tar.Header, data []byte) error {
	for i, c := range h.Name {
		if c != '/' || l.dirs[h.Name[:i]] {
			continue
		}
		l.dirs[h.Name[:i]] = true
		d := &tar.Header{Name: h.Name[:i] + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1700000000, 0)}
		if err := l.tw.WriteHeader(d); err != nil {
			return err
		}
		l.entries++
	}
	h.Size = int64(len(data))
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1700000000+int64(l.entries), 0)
	}
	if h.Typeflag == tar.TypeReg {
		l.prev = h
	}
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	l.entries++
	_, err := l.tw.Write(data)
	return err
}

var words = func() []string {
	rng := rand.New(rand.NewPCG(1, 1))
	list := make([]string, 6000)
	for i := range list {
		var b strings.Builder
		for range 2 + rng.IntN(4) {
			b.WriteByte("bcdfghklmnprstvw"[rng.IntN(16)])
			b.WriteByte("aeiou"[rng.IntN(5)])
		}
		list[i] = b.String()
	}
	return list
}()

// rank is a number below n, small ones being the more frequent, roughly as words are in texts.
func (l *layer) rank(n int) int { return int(math.Exp(l.rng.Float64()*math.Log(float64(n)))) - 1 }

// again repeats, one time in so many, up to limit of the last bytes.
func (l *layer) again(b []byte, oneIn, limit int) []byte {
	if l.rng.IntN(oneIn) != 0 || len(b) < 4000 {
		return b
	}
	at := len(b) - 1000 - l.rng.IntN(3000)
	return append(b, b[at:at+8+l.rng.IntN(limit-8)]...)
}

// text is like source code: lines of frequent and rare words, indented.
func (l *layer) text(size int) []byte {
	b := l.buf[:0]
	for len(b) < size {
		b = append(b, "                "[:4*l.rng.IntN(4)]...)
		for range 3 + l.rng.IntN(7) {
			b = append(b, words[l.rank(len(words))]...)
			b = append(b, "      .,(_"[l.rng.IntN(10)])
		}
		b = append(b, '\n')
		b = l.again(b, 3, 100)
	}
	l.buf = b
	return b[:size]
}

var codes = func() [][]byte {
	rng := rand.New(rand.NewPCG(2, 2))
	list := make([][]byte, 1500)
	for i := range list {
		list[i] = make([]byte, 2+rng.IntN(5))
		for j := range list[i] {
			list[i][j] = byte(rng.Uint32() >> rng.IntN(7) & 0xff)
		}
	}
	return list
}()

// binary is like machine code: frequent and rare instructions with small and large operands.
func (l *layer) binary(size int) []byte {
	b := l.buf[:0]
	for len(b) < size {
		b = append(b, codes[l.rank(len(codes))]...)
		switch r := l.rng.Uint32(); r & 7 {
		case 0:
			b = append(b, byte(r>>8))
		case 1:
			b = append(b, byte(r>>8), byte(r>>16&3), 0, 0)
		case 2:
			b = binary.LittleEndian.AppendUint16(b, uint16(r>>12))
		}
		b = l.again(b, 9, 28)
	}
	l.buf = b
	return b[:size]
}

func (l *layer) noise(size int) []byte {
	b := l.buf[:0]
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, l.rng.Uint64())
	}
	l.buf = b
	return b[:size]
}

// writeBlob stores a small blob.
func writeBlob(blobs, mediaType string, data []byte) (ocispec.Descriptor, error) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, name),
		Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(blobs, name), bytes.Clone(data), 0o644)
}
