package containerddb

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mentions returns those of the keys, "<namespace>/<sequence>/<name>", whose text occurs in the file of a
// database: all that the database contains, and many that it once contained. It does not depend on
// containerd's layout of the database.
func Mentions(ctx context.Context, f File, keys []string) (map[string]bool, error) {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if now, err := describe(file); err != nil || !now.Same(f) {
		return nil, fmt.Errorf("%s: another file", f.Path)
	}
	return mentions(ctx, file, keys)
}

const mentionsChunk = 1 << 20

func mentions(ctx context.Context, r io.Reader, keys []string) (map[string]bool, error) {
	longest := 0
	byNumber := map[string][]string{} // by "<namespace>/<sequence>/"
	namespaces := map[string]bool{}
	for _, k := range keys {
		ns, rest, _ := strings.Cut(k, "/")
		number, _, _ := strings.Cut(rest, "/")
		byNumber[ns+"/"+number+"/"] = append(byNumber[ns+"/"+number+"/"], k)
		namespaces[ns+"/"] = true
		longest = max(longest, len(k))
	}
	found := map[string]bool{}
	buf := make([]byte, longest+mentionsChunk)
	kept := 0 // bytes that are kept from the previous chunk, because a key may continue in the next one
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := io.ReadFull(r, buf[kept:])
		chunk := buf[:kept+n]
		for ns := range namespaces {
			findKeys(chunk, ns, byNumber, found)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		kept = copy(buf, chunk[len(chunk)-longest:])
	}
}

// findKeys adds the keys of a namespace that occur in a chunk to found.
func findKeys(chunk []byte, ns string, byNumber map[string][]string, found map[string]bool) {
	for rest := chunk; ; {
		i := bytes.Index(rest, []byte(ns))
		if i < 0 {
			return
		}
		rest = rest[i:]
		if end := bytes.IndexByte(rest[len(ns):min(len(rest), len(ns)+21)], '/'); end > 0 {
			for _, k := range byNumber[string(rest[:len(ns)+end+1])] {
				if bytes.HasPrefix(rest, []byte(k)) {
					found[k] = true
				}
			}
		}
		rest = rest[len(ns):]
	}
}
