package unpacktest

import (
	"archive/tar"
	"fmt"
)

// Piece is data in a file with holes.
type Piece struct {
	At   int64
	Data string
}

// SparseTar returns an archive of one file with holes, in PAX format 1.0. Package tar reads such files, but does
// not write them.
func SparseTar(name string, size int64, pieces ...Piece) []byte {
	list := fmt.Sprintf("%d\n", len(pieces))
	data := ""
	for _, p := range pieces {
		list += fmt.Sprintf("%d\n%d\n", p.At, len(p.Data))
		data += p.Data
	}
	body := string(padded(list)) + data
	records := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", name) + record("GNU.sparse.realsize", fmt.Sprint(size))
	out := append(rawHeader("x", tar.TypeXHeader, len(records)), padded(records)...)
	out = append(append(out, rawHeader("f", tar.TypeReg, len(body))...), padded(body)...)
	return append(out, make([]byte, 1024)...)
}

const block = 512

func padded(s string) []byte { return append([]byte(s), make([]byte, -len(s)&(block-1))...) }

// record returns a record of an extended header, which begins with its own length.
func record(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(fmt.Sprint(n))+len(rest) {
		n = len(fmt.Sprint(n)) + len(rest)
	}
	return fmt.Sprint(n) + rest
}

func rawHeader(name string, typ byte, size int) []byte {
	h := make([]byte, block)
	for at, field := range map[int]string{
		0: name, 100: "0000644\x00", 108: "0000000\x00", 116: "0000000\x00",
		124: fmt.Sprintf("%011o\x00", size), 136: "00000000000\x00",
		148: "        ", 156: string(typ), 257: "ustar\x0000",
	} {
		copy(h[at:], field)
	}
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}
