package decompress_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/tank-snapshotter/tank/internal/mediatype"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	u "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

const (
	ociTar     = "application/vnd.oci.image.layer.v1.tar"
	dockerTar  = "application/vnd.docker.image.rootfs.diff.tar"
	foreignTar = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	nondistTar = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
)

func zstdBytes(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, opts...)
	must(t, err)
	_, err = w.Write(data)
	must(t, err)
	must(t, w.Close())
	return buf.Bytes()
}

// skippable returns a zstd frame that decoders skip.
func skippable(data string) []byte {
	out := binary.LittleEndian.AppendUint32(nil, 0x184d2a53)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(data)))
	return append(out, data...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestDecompress(t *testing.T) {
	tarBytes := u.Tar(t, u.F("a", strings.Repeat("data", 5000)))
	half := len(tarBytes) / 2
	gz, zs := u.Gzip(t, tarBytes), zstdBytes(t, tarBytes)
	polyglot := u.Tar(t, u.F("\x1f\x8b\x08", "1"))
	badSum := append([]byte{}, zs...)
	badSum[len(badSum)-1] ^= 1
	badCRC := append([]byte{}, gz...)
	badCRC[len(badCRC)-8] ^= 1
	for _, tc := range []struct {
		id, mediaType string
		blob, want    []byte
		err           string
	}{
		{"gzip", ociTar + "+gzip", gz, tarBytes, ""},
		{"docker gzip", dockerTar + ".gzip", gz, tarBytes, ""},
		{"foreign layer", foreignTar, gz, tarBytes, ""},
		{"nondistributable", nondistTar, zs, tarBytes, ""},
		{"zstd", ociTar + "+zstd", zs, tarBytes, ""},
		{"plain", ociTar, tarBytes, tarBytes, ""},
		{"no media type", "", gz, tarBytes, ""},
		{"no media type, zstd", "", zs, tarBytes, ""},
		{"no media type, plain", "", tarBytes, tarBytes, ""},
		{"E45 several members",
			ociTar + "+gzip", join(u.Gzip(t, tarBytes[:half]), u.Gzip(t, tarBytes[half:])), tarBytes, ""},
		{"E45 empty members", ociTar + "+gzip", join(u.Gzip(t, nil), gz, bytes.Repeat(u.Gzip(t, nil), 1000)), tarBytes,
			""},
		{"E45 trailing zeros", ociTar + "+gzip", join(gz, make([]byte, 1000)), tarBytes, ""},
		{"E45 trailing garbage", ociTar + "+gzip", join(gz, []byte("garbage")), tarBytes, ""},
		{"E45 one trailing byte", ociTar + "+gzip", join(gz, []byte{0x1f}), tarBytes, ""},
		{"E45 a damaged second member", ociTar + "+gzip", join(gz, gz[:20]), nil, "ends in its middle"},
		{"truncated gzip", ociTar + "+gzip", gz[:len(gz)-1], nil, "ends in its middle"},
		{"truncated gzip header", ociTar + "+gzip", gz[:5], nil, "ends in its middle"},
		{"wrong gzip checksum", ociTar + "+gzip", badCRC, nil, "gzip"},
		{"gzip with a reserved flag", ociTar + "+gzip", join(gz[:3], []byte{0x20}, gz[4:]), nil, "header"},
		{"E45 another method in the second member", ociTar + "+gzip", join(gz, []byte{0x1f, 0x8b, 9}, gz[3:]), nil,
			"header"},
		{"E46 several frames", ociTar + "+zstd",
			join(skippable("x"), zstdBytes(t, tarBytes[:half]), skippable(""), zstdBytes(t, tarBytes[half:]),
				skippable("end")), tarBytes, ""},
		{"E46 wrong checksum", ociTar + "+zstd", badSum, nil, "zstd"},
		{"E46 trailing garbage", ociTar + "+zstd", join(zs, []byte("garbage!")), nil, "zstd"},
		{"truncated zstd", ociTar + "+zstd", zs[:len(zs)-5], nil, "zstd"},
		{"B6 too large a window", ociTar + "+zstd", windowFrame(31), nil, "window"},
		{"B6 a larger window later", ociTar + "+zstd", join(zs, windowFrame(25), zs), join(tarBytes, tarBytes), ""},
		{"B7 skippable frame of 4 GiB", ociTar + "+zstd", []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 0},
			nil, "zstd"},
		{"B14 xz", ociTar + "+gzip", append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, make([]byte, 1000)...), nil,
			"compressed with xz"},
		{"B14 bzip2", dockerTar, append([]byte("BZh9"), make([]byte, 1000)...), nil, "compressed with bzip2"},
		{"B15 tar that begins like gzip", ociTar, polyglot, polyglot, ""},
		{"B15 tar that begins like gzip, as gzip", ociTar + "+gzip", polyglot, polyglot, ""},
		{"E47 tar as gzip", dockerTar + ".gzip", tarBytes, tarBytes, ""},
		{"E47 tar as zstd", ociTar + "+zstd", tarBytes, tarBytes, ""},
		{"E47 short junk as gzip", ociTar + "+gzip", []byte("junk"), nil, "neither"},
		{"E43 no bytes", ociTar + "+gzip", nil, nil, ""},
		{"E43 gzip of no bytes", ociTar + "+gzip", u.Gzip(t, nil), nil, ""},
		{"E43 zeros", ociTar, make([]byte, 1024), make([]byte, 1024), ""},
	} {
		t.Run(tc.id, func(t *testing.T) {
			for way := range 4 {
				restore := decompress.SetOwnGzip(way&1 != 0)
				defer restore()
				wrap := func(r io.Reader) io.Reader { return r }
				if way&2 != 0 {
					wrap = iotest.OneByteReader
				}
				in := bytes.NewReader(tc.blob)
				got, err := readAll(tc.mediaType, wrap(in))
				if tc.err != "" {
					if !errors.Is(err, stream.ErrInvalidLayer) || !strings.Contains(err.Error(), tc.err) {
						t.Errorf("error %v, want %q", err, tc.err)
					}
					continue
				}
				if err != nil || !bytes.Equal(got, tc.want) {
					t.Errorf("%d bytes and %v, want %d", len(got), err, len(tc.want))
				}
				if in.Len() != 0 {
					t.Errorf("%d bytes of the blob were not read", in.Len())
				}
			}
		})
	}
}

func readAll(mediaType string, r io.Reader) ([]byte, error) {
	z, err := decompress.NewReader(mediaType, r)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(z)
	return got, errors.Join(err, z.Close())
}

// TestEveryLayerType checks that the bytes, not the media type, decide how a layer is decompressed. Media types of
// other content are refused.
func TestEveryLayerType(t *testing.T) {
	tarBytes := u.Tar(t, u.F("a", "1"))
	for _, mediaType := range []string{
		"", ociTar, ociTar + "+gzip", ociTar + "+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", nondistTar,
		dockerTar, dockerTar + ".gzip", dockerTar + ".zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar", foreignTar,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
	} {
		for _, blob := range [][]byte{tarBytes, u.Gzip(t, tarBytes), zstdBytes(t, tarBytes)} {
			if got, err := readAll(mediaType, bytes.NewReader(blob)); err != nil || !bytes.Equal(got, tarBytes) {
				t.Errorf("%q, % x: %d bytes, %v", mediaType, blob[:4], len(got), err)
			}
		}
	}
	for mediaType, want := range map[string]string{
		"application/vnd.erofs.layer.v1":                      "an image of EROFS layers",
		ociTar + "+gzip+encrypted":                            "an encrypted image",
		"application/vnd.cncf.helm.chart.content.v1.tar+gzip": "a Helm chart",
		"application/x-something":                             `content of media type "application/x-something"`,
	} {
		_, err := decompress.NewReader(mediaType, bytes.NewReader(tarBytes))
		if !errors.Is(err, mediatype.ErrNotRootfs) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
}

// windowFrame returns a zstd frame with a window of 1<<log bytes and one empty block.
func windowFrame(log byte) []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3, 0x01, 0x00, 0x00}
}

// TestDecompressFaults checks that an error of the underlying reader is returned and not blamed on the layer.
func TestDecompressFaults(t *testing.T) {
	fault := errors.New("connection lost")
	for i, blob := range [][]byte{
		u.Gzip(t, u.Tar(t, u.F("a", "1"))), u.Gzip(t, u.Tar(t, u.F("a", "1"))), zstdBytes(t, u.Tar(t, u.F("a", "1"))),
		u.Tar(t, u.F("a", "1")),
	} {
		restore := decompress.SetOwnGzip(i == 1)
		defer restore()
		for _, cut := range []int{0, 1, 12, len(blob) - 1, len(blob)} {
			for _, fault := range []error{fault, io.ErrUnexpectedEOF} {
				_, err := readAll("", io.MultiReader(bytes.NewReader(blob[:cut]), iotest.ErrReader(fault)))
				if !errors.Is(err, fault) || errors.Is(err, stream.ErrInvalidLayer) {
					t.Errorf("fault after %d of %d bytes: %v", cut, len(blob), err)
				}
			}
		}
	}
}

// TestGzipDecodersAgree checks that both gzip decoders accept and refuse the same blobs and return the same bytes.
func TestGzipDecodersAgree(t *testing.T) {
	member := u.Gzip(t, []byte("a layer, a layer, and another layer"))
	file := join(member, member, []byte("garbage"))
	for i := range 9 * len(file) {
		blob := bytes.Clone(file)
		if i < len(file) {
			blob = blob[:i]
		} else {
			blob[i/9] ^= 1 << (i % 9 & 7)
		}
		var got [2][]byte
		var errs [2]error
		var left [2]int
		for own := range 2 {
			restore := decompress.SetOwnGzip(own == 1)
			in := bytes.NewReader(blob)
			got[own], errs[own] = readAll("", in)
			left[own] = in.Len()
			restore()
		}
		same := (errs[0] == nil) == (errs[1] == nil) &&
			errors.Is(errs[0], stream.ErrInvalidLayer) == errors.Is(errs[1], stream.ErrInvalidLayer)
		if !same || errs[0] == nil && (!bytes.Equal(got[0], got[1]) || left != [2]int{}) {
			t.Errorf("case %d: klauspost %d bytes and %v, inflate %d bytes and %v, %v bytes of the blob unread",
				i, len(got[0]), errs[0], len(got[1]), errs[1], left)
		}
	}
}

// TestDecompressWriteTo checks that WriteTo writes all bytes, that an error of the writer is not blamed on the layer,
// and that a closed reader stays closed.
func TestDecompressWriteTo(t *testing.T) {
	defer decompress.SetOwnGzip(true)()
	data := bytes.Repeat([]byte("layer "), 100_000)
	z, err := decompress.NewReader("", bytes.NewReader(u.Gzip(t, data)))
	must(t, err)
	var out bytes.Buffer
	n, err := z.(io.WriterTo).WriteTo(&out)
	if err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("%d bytes, %v", n, err)
	}
	must(t, z.Close())
	must(t, z.Close())
	if _, err := z.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Read of a closed reader: %v", err)
	}
	if _, err := z.(io.WriterTo).WriteTo(io.Discard); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteTo of a closed reader: %v", err)
	}

	full := errors.New("disk full")
	for _, w := range []io.Writer{iotest.TruncateWriter(io.Discard, 0), failing{full}} {
		z, err = decompress.NewReader("", bytes.NewReader(u.Gzip(t, data)))
		must(t, err)
		_, err = z.(io.WriterTo).WriteTo(w)
		if _, fails := w.(failing); fails != errors.Is(err, full) || errors.Is(err, stream.ErrInvalidLayer) {
			t.Errorf("writer %T: %v", w, err)
		}
		must(t, z.Close())
	}
	bad := u.Gzip(t, data)
	bad[len(bad)-1] ^= 1
	z, err = decompress.NewReader("", bytes.NewReader(bad))
	must(t, err)
	if _, err := z.(io.WriterTo).WriteTo(io.Discard); !errors.Is(err, stream.ErrInvalidLayer) {
		t.Errorf("a wrong checksum: %v", err)
	}
	must(t, z.Close())
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestGzipVariable checks that TANK_GZIP=klauspost selects klauspost's decoder.
func TestGzipVariable(t *testing.T) {
	if os.Getenv("TANK_TEST_PRINTS_DECODER") != "" {
		fmt.Println("own decoder:", decompress.OwnGzip())
		return
	}
	for value, want := range map[string]bool{"": true, "klauspost": false, "other": true} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGzipVariable$")
		cmd.Env = append(os.Environ(), "TANK_TEST_PRINTS_DECODER=1", "TANK_GZIP="+value)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), fmt.Sprintf("own decoder: %v\n", want)) {
			t.Errorf("TANK_GZIP=%q: %v\n%s", value, err, out)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
